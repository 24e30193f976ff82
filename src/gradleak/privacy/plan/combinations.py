"""The table of what may be accounted for: view × unit × what is drawn × sampling × mechanism × clip × relation, each row with the
theorem that it rests on; the first row that covers a plan counts. A plan that no row covers is refused by name. ``docs/valid_combinations.md`` is generated from it.

Each true ingredient can be wrong beside the others: sampling of records hides no client, the noise of M clients adds up by its
variance only if it is Gaussian, and a coin that the adversary sees hides nothing. Must not compute any ε.
"""

from __future__ import annotations

from dataclasses import fields, replace

from gradleak.core.errors import UsageError
from gradleak.privacy.plan.axes import Axes, Combination, axes_of
from gradleak.privacy.plan.plan import Plan

ANY_VIEW = ("final_model", "server_sees_each_update", "secure_aggregation")
SERVER = ANY_VIEW[1:]
PRESENCE = ("add_or_remove", "zero_out")
BOUND = ("zero_out", "replace_one")
PER_EXAMPLE = ("example", "tensor")

_WEIGHTS = {"mechanism": 4, "clip": 3, "unit": 2}
"""What a plan would rather keep, when the nearest valid row is sought."""
_DERIVED = "derived in accounting/mixtures.py"
_TOLD = (
    "an adversary who is told the draws does no worse; given them, a step with m participations is the Gaussian mechanism at "
    "distance m·d, and δ is the mean over the draws"
)
_HIDDEN = ("loss distribution", "Rényi", "known draws")
_EXACT = ("exact curve",)
_GAUSSIAN_SUM = "√Σ d²/z² over the steps, exact for Gaussian releases"

COMBINATIONS: tuple[Combination, ...] = (
    Combination(
        name="every step",
        clip=(*PER_EXAMPLE, "update"),
        unit=("record", "user", "client"),
        drawn=("nothing",),
        sampling=("none",),
        view=ANY_VIEW,
        relation=(*PRESENCE, "replace_one"),
        law="full",
        composition=_GAUSSIAN_SUM,
        theorem="exact curve of the Gaussian mechanism at distance k·C (2k·C for an exchange)",
        source="Balle and Wang, arXiv 1805.06530, equation 6",
        accountants=_EXACT,
    ),
    Combination(
        name="a client whose records are drawn",
        clip=("update",),
        unit=("client",),
        drawn=("records",),
        sampling=("poisson", "fixed", "shuffle", "with_replacement"),
        view=ANY_VIEW,
        relation=(*PRESENCE, "replace_one"),
        law="full",
        composition=_GAUSSIAN_SUM,
        theorem="the client is in every step, whichever of its records are: nothing hides it, each step is a full release",
        source="Balle and Wang, arXiv 1805.06530, equation 6",
        accountants=_EXACT,
    ),
    Combination(
        name="hidden coin",
        clip=PER_EXAMPLE,
        unit=("record",),
        drawn=("records",),
        sampling=("poisson",),
        view=ANY_VIEW,
        relation=PRESENCE,
        law="poisson",
        composition="convolution of loss distributions",
        theorem="given the others' coins, a step is the Poisson pair; loss distributions of dominating pairs compose",
        source="Mironov, Talwar and Zhang, arXiv 1908.10530 (pair); values checked against three other accountants",
        accountants=_HIDDEN,
    ),
    Combination(
        name="hidden coin of a whole client",
        clip=(*PER_EXAMPLE, "update"),
        unit=("user", "client"),
        drawn=("clients",),
        sampling=("poisson",),
        view=("final_model",),
        relation=PRESENCE,
        law="poisson",
        composition="convolution of loss distributions",
        theorem="the k records of a client are drawn by one coin: the Poisson pair at distance k·C (C if its update is clipped)",
        source="Mironov, Talwar and Zhang, arXiv 1908.10530 (pair)",
        accountants=_HIDDEN,
    ),
    Combination(
        name="hidden coin, exchange",
        clip=PER_EXAMPLE,
        unit=("record",),
        drawn=("records",),
        sampling=("poisson",),
        view=ANY_VIEW,
        relation=("replace_one",),
        law="poisson_exchange",
        composition="convolution of loss distributions",
        theorem="of all two contributions in the ball of radius C, antipodal ones are told apart most easily",
        source=_DERIVED,
        accountants=_HIDDEN,
    ),
    Combination(
        name="hidden coin of a whole client, exchange",
        clip=(*PER_EXAMPLE, "update"),
        unit=("user", "client"),
        drawn=("clients",),
        sampling=("poisson",),
        view=("final_model",),
        relation=("replace_one",),
        law="poisson_exchange",
        composition="convolution of loss distributions",
        theorem="as for a record, at k times the distance",
        source=_DERIVED,
        accountants=_HIDDEN,
    ),
    Combination(
        name="a user's records, a hidden coin each",
        clip=PER_EXAMPLE,
        unit=("user",),
        drawn=("records",),
        sampling=("poisson",),
        view=ANY_VIEW,
        relation=PRESENCE,
        law="binomial",
        composition="convolution of loss distributions",
        theorem="m of the k records are in a step with probability Bin(k, q)(m), and all point one way at worst",
        source="mixture of Gaussians as in dp-accounting; one step checked by quadrature",
        accountants=_HIDDEN,
    ),
    Combination(
        name="a user's records, a coin each, exchange",
        clip=PER_EXAMPLE,
        unit=("user",),
        drawn=("records",),
        sampling=("poisson",),
        view=ANY_VIEW,
        relation=("replace_one",),
        law="known",
        composition="mean over the draws of all steps",
        theorem=_TOLD,
        source="derived in accounting/known_draws.py",
        accountants=("known draws",),
    ),
    Combination(
        name="fixed batches",
        clip=PER_EXAMPLE,
        unit=("record",),
        drawn=("records",),
        sampling=("fixed",),
        view=ANY_VIEW,
        relation=("zero_out",),
        law="fixed",
        composition="convolution of loss distributions, one for each order of the neighbors",
        theorem="where the unit is not drawn another stands in its place; the worst stands opposite",
        source=_DERIVED,
        accountants=_HIDDEN,
    ),
    Combination(
        name="fixed batches of whole clients",
        clip=(*PER_EXAMPLE, "update"),
        unit=("user", "client"),
        drawn=("clients",),
        sampling=("fixed",),
        view=("final_model",),
        relation=("zero_out",),
        law="fixed",
        composition="convolution of loss distributions, one for each order of the neighbors",
        theorem="as for a record, at k times the distance; no other client has more than k records",
        source=_DERIVED,
        accountants=_HIDDEN,
    ),
    Combination(
        name="fixed batches, exchange",
        clip=PER_EXAMPLE,
        unit=("record",),
        drawn=("records",),
        sampling=("fixed",),
        view=ANY_VIEW,
        relation=("replace_one",),
        law="fixed_exchange",
        composition="convolution of loss distributions",
        theorem="by Neyman and Pearson no set of probability p under one contribution has less than Φ(Φ⁻¹(p) - 2/z) under another",
        source=_DERIVED,
        accountants=_HIDDEN,
    ),
    Combination(
        name="fixed batches of whole clients, exchange",
        clip=(*PER_EXAMPLE, "update"),
        unit=("user", "client"),
        drawn=("clients",),
        sampling=("fixed",),
        view=("final_model",),
        relation=("replace_one",),
        law="fixed_exchange",
        composition="convolution of loss distributions",
        theorem="as for a record, at k times the distance; no other client has more than k records",
        source=_DERIVED,
        accountants=_HIDDEN,
    ),
    Combination(
        name="a user's records in fixed batches",
        clip=PER_EXAMPLE,
        unit=("user",),
        drawn=("records",),
        sampling=("fixed",),
        view=ANY_VIEW,
        relation=BOUND,
        law="known",
        composition="mean over the draws of all steps",
        theorem=_TOLD + "; m is hypergeometric, at most k",
        source="derived in accounting/known_draws.py",
        accountants=("known draws",),
    ),
    Combination(
        name="shuffled epochs",
        clip=PER_EXAMPLE,
        unit=("record", "user"),
        drawn=("records",),
        sampling=("shuffle",),
        view=ANY_VIEW,
        relation=BOUND,
        law="full",
        composition="one full release in each epoch, the least noisy of its steps",
        theorem="an adversary who is told the batches does no worse; a record is in at most one batch of an epoch, and all k of a "
        "user may be in the same one",
        source="Balle and Wang, arXiv 1805.06530, equation 6",
        accountants=_EXACT,
    ),
    Combination(
        name="shuffled epochs of whole clients",
        clip=(*PER_EXAMPLE, "update"),
        unit=("record", "user", "client"),
        drawn=("clients",),
        sampling=("shuffle",),
        view=ANY_VIEW,
        relation=BOUND,
        law="full",
        composition="one full release in each epoch, the least noisy of its steps",
        theorem="as for records",
        source="Balle and Wang, arXiv 1805.06530, equation 6",
        accountants=_EXACT,
    ),
    Combination(
        name="the server sees who takes part",
        clip=(*PER_EXAMPLE, "update"),
        unit=("record", "user", "client"),
        drawn=("clients",),
        sampling=("poisson", "fixed"),
        view=SERVER,
        relation=BOUND,
        law="known",
        composition="mean over the number of participations",
        theorem=_TOLD + "; who takes part is no secret, so neighbors differ in what was sent, not in whether",
        source="derived in accounting/known_draws.py",
        accountants=("known draws",),
    ),
    Combination(
        name="a record of a client that is drawn",
        clip=PER_EXAMPLE,
        unit=("record",),
        drawn=("clients",),
        sampling=("poisson", "fixed"),
        view=("final_model",),
        relation=(*PRESENCE, "replace_one"),
        law="known",
        composition="mean over the number of participations",
        theorem=_TOLD
        + "; the client's other records come with the coin and can show it, so it cannot be counted as hidden",
        source="derived in accounting/known_draws.py",
        accountants=("known draws",),
    ),
    Combination(
        name="batches with replacement",
        clip=PER_EXAMPLE,
        unit=("record", "user"),
        drawn=("records",),
        sampling=("with_replacement",),
        view=ANY_VIEW,
        relation=BOUND,
        law="known",
        composition="mean over the draws of all steps",
        theorem=_TOLD + "; m is Bin(B, k/N)",
        source="derived in accounting/known_draws.py",
        accountants=("known draws",),
    ),
    Combination(
        name="batches of clients with replacement",
        clip=(*PER_EXAMPLE, "update"),
        unit=("record", "user", "client"),
        drawn=("clients",),
        sampling=("with_replacement",),
        view=ANY_VIEW,
        relation=BOUND,
        law="known",
        composition="mean over the draws of all steps",
        theorem=_TOLD + "; m is Bin(B, 1/N), at k times the distance",
        source="derived in accounting/known_draws.py",
        accountants=("known draws",),
    ),
    Combination(
        name="cut Poisson batches",
        clip=PER_EXAMPLE,
        unit=("record",),
        drawn=("records",),
        sampling=("cut",),
        view=ANY_VIEW,
        relation=(*PRESENCE, "replace_one"),
        law="cut",
        composition="convolution of loss distributions",
        theorem="whoever is in may push another out, so neighbors differ by up to 2C in a step",
        source="dp-accounting's event for cut batches; one step checked by enumeration",
        accountants=("loss distribution", "known draws"),
    ),
    Combination(
        name="clip per microbatch",
        clip=("microbatch",),
        unit=("record",),
        drawn=("nothing", "records"),
        sampling=("none", "shuffle"),
        view=ANY_VIEW,
        relation=BOUND,
        law="full",
        composition=_GAUSSIAN_SUM,
        theorem="one record moves the clipped gradient of its microbatch from anywhere in the ball to anywhere: distance 2C",
        source="Balle and Wang, arXiv 1805.06530, equation 6",
        accountants=_EXACT,
    ),
    Combination(
        name="clip per microbatch, drawn records",
        clip=("microbatch",),
        unit=("record",),
        drawn=("records",),
        sampling=("poisson", "fixed"),
        view=ANY_VIEW,
        relation=BOUND,
        law="known",
        composition="mean over the number of participations",
        theorem=_TOLD
        + "; who is drawn moves others between microbatches, so the coin cannot be counted as hidden; distance 2C",
        source="derived in accounting/known_draws.py",
        accountants=("known draws",),
    ),
    Combination(
        name="clip per batch",
        clip=("batch",),
        unit=("record",),
        drawn=("nothing", "records"),
        sampling=("none", "shuffle"),
        view=ANY_VIEW,
        relation=(*PRESENCE, "replace_one"),
        law="full",
        composition=_GAUSSIAN_SUM,
        theorem="one record moves the clipped gradient of its batch from anywhere in the ball to anywhere: distance 2C",
        source="Balle and Wang, arXiv 1805.06530, equation 6",
        accountants=_EXACT,
    ),
    Combination(
        name="clip per batch, hidden coin",
        clip=("batch",),
        unit=("record",),
        drawn=("records",),
        sampling=("poisson",),
        view=ANY_VIEW,
        relation=PRESENCE,
        law="poisson",
        composition="convolution of loss distributions",
        theorem="given the others' coins, the batch's clipped gradient with and without the record are two points of the ball: the "
        "Poisson pair at distance 2C",
        source="Mironov, Talwar and Zhang, arXiv 1908.10530 (pair)",
        accountants=_HIDDEN,
    ),
    Combination(
        name="clip per batch, exchange",
        clip=("batch",),
        unit=("record",),
        drawn=("records",),
        sampling=("poisson", "fixed"),
        view=ANY_VIEW,
        relation=BOUND,
        law="fixed_exchange",
        composition="convolution of loss distributions",
        theorem="three points of the ball: not drawn, drawn, drawn and exchanged; as for fixed batches",
        source=_DERIVED,
        accountants=_HIDDEN,
    ),
    Combination(
        name="Laplace noise, every step",
        mechanism=("laplace",),
        clip=(*PER_EXAMPLE, "update"),
        unit=("record", "user", "client"),
        drawn=("nothing",),
        sampling=("none",),
        view=ANY_VIEW,
        relation=(*PRESENCE, "replace_one"),
        law="full",
        composition="convolution of loss distributions, and Σ d/b at δ = 0",
        theorem="a shift of L1 length d is told apart most easily along one axis; of the noise of several clients only one counts",
        source="derived in accounting/laplace.py",
        accountants=("loss distribution", "pure ε"),
    ),
    Combination(
        name="Laplace noise, a client whose records are drawn",
        mechanism=("laplace",),
        clip=("update",),
        unit=("client",),
        drawn=("records",),
        sampling=("poisson", "fixed", "shuffle", "with_replacement"),
        view=ANY_VIEW,
        relation=(*PRESENCE, "replace_one"),
        law="full",
        composition="convolution of loss distributions, and Σ d/b at δ = 0",
        theorem="the client is in every step, whichever of its records are",
        source="derived in accounting/laplace.py",
        accountants=("loss distribution", "pure ε"),
    ),
    Combination(
        name="Laplace noise, hidden coin",
        mechanism=("laplace",),
        clip=PER_EXAMPLE,
        unit=("record",),
        drawn=("records",),
        sampling=("poisson",),
        view=ANY_VIEW,
        relation=PRESENCE,
        law="poisson",
        composition="convolution of loss distributions",
        theorem="a coin before a dominated pair is dominated by the coin before the dominating one",
        source="derived in accounting/laplace.py",
        accountants=("loss distribution", "pure ε"),
    ),
    Combination(
        name="Laplace noise, hidden coin of a whole client",
        mechanism=("laplace",),
        clip=(*PER_EXAMPLE, "update"),
        unit=("user", "client"),
        drawn=("clients",),
        sampling=("poisson",),
        view=("final_model",),
        relation=PRESENCE,
        law="poisson",
        composition="convolution of loss distributions",
        theorem="as for a record, at k times the distance",
        source="derived in accounting/laplace.py",
        accountants=("loss distribution", "pure ε"),
    ),
    Combination(
        name="Laplace noise, shuffled epochs",
        mechanism=("laplace",),
        clip=(*PER_EXAMPLE, "update"),
        unit=("record", "user", "client"),
        drawn=("records", "clients"),
        sampling=("shuffle",),
        view=ANY_VIEW,
        relation=BOUND,
        law="full",
        composition="one full release in each epoch",
        theorem="an adversary who is told the batches does no worse",
        source="derived in accounting/laplace.py",
        accountants=("loss distribution", "pure ε"),
    ),
    Combination(
        name="Laplace noise, draws that are known",
        mechanism=("laplace",),
        clip=(*PER_EXAMPLE, "update"),
        unit=("record", "user", "client"),
        drawn=("records", "clients"),
        sampling=("poisson", "fixed", "with_replacement"),
        view=ANY_VIEW,
        relation=(*PRESENCE, "replace_one"),
        law="known",
        composition="as many full releases as are exceeded with probability at most δ/2",
        theorem="an adversary who is told the draws does no worse; more participations than the tail allows count as δ",
        source="derived in accounting/laplace.py",
        accountants=("loss distribution", "pure ε"),
    ),
    Combination(
        name="a tree over the steps",
        mechanism=("tree",),
        clip=(*PER_EXAMPLE, "update"),
        unit=("record", "user", "client"),
        drawn=("nothing",),
        sampling=("none",),
        view=("final_model",),
        relation=BOUND,
        law="full",
        composition="each tree one Gaussian release of all nodes that hold the unit's leaf",
        theorem="a leaf lies in at most ⌊log₂ n⌋ + 1 nodes, each moved by at most the unit's contribution",
        source="Kairouz et al., arXiv 2103.00039 (mechanism); the count is derived in plan/views.py",
        accountants=_EXACT,
    ),
)


def find(plan: Plan) -> tuple[Combination, Axes]:
    """The row that covers the plan, with the plan's axes.

    Where add-or-remove has no meaning (batches of fixed size, trees, a server that sees who takes part) and zero-out has, the
    row of zero-out is taken; the axes then say so.

    Raises:
        UsageError: if no row covers the plan; names the nearest row and what would have to change.
    """
    axes = axes_of(plan)
    tried = [axes]
    if axes.relation == "add_or_remove":
        zero_out = replace(axes, relation="zero_out")
        # A server that receives updates, or a sum of known length, sees that a client is missing.
        tried = [zero_out] if axes.unit == "client" and axes.view != "final_model" else [axes, zero_out]
    for place in tried:
        for row in COMBINATIONS:
            if not row.differences(place):
                return row, place
    raise UsageError(_refusal(tried[-1]))


def _refusal(axes: Axes) -> str:
    nearest = min(COMBINATIONS, key=lambda row: sum(_WEIGHTS.get(name, 1) for name in row.differences(axes)))
    given = ", ".join(f"{f.name} {getattr(axes, f.name)}" for f in fields(Axes))
    changes = "; ".join(
        f"{name} {' or '.join(getattr(nearest, name))} instead of {getattr(axes, name)}"
        for name in nearest.differences(axes)
    )
    return (
        f"No theorem here covers this plan ({given}). The nearest valid combination is “{nearest.name}”: {changes}. "
        "docs/valid_combinations.md lists all."
    )
