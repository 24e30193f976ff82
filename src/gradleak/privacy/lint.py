"""Most wrong epsilons are wrong for one of a dozen known reasons. Compares what a plan does with what was claimed for it,
and says what the difference costs. Must not know files or the command line.

A lint is a function of a plan, what was claimed and what is guaranteed; ``@rule`` gives it its code and its remedy. ``LINTS``
lists them in the order of the docs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting import closed_forms
from gradleak.privacy.accounting.accountant import Guarantee, account
from gradleak.privacy.plan.axes import axes_of
from gradleak.privacy.plan.combinations import find
from gradleak.privacy.plan.plan import Claimed, Plan

Severity = Literal["error", "warning"]

LARGE_DELTA = 1e-3
"""A δ from here on is suspect for whatever number of records a training has."""
CLASSICAL_PROVEN = 1.0
"""The classical Gaussian calibration is proven for ε ≤ 1 only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with a plan or its claim.

    Attributes:
        code: short name, stable across versions.
        severity: ``error``: the claim is false or there is no guarantee; ``warning``: it may be, or it wastes noise.
        message: what is wrong, with numbers.
        remedy: what to do.
    """

    code: str
    severity: Severity
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Said:
    """What a lint says if it fires; ``numbers`` fill the remedy's places."""

    message: str
    severity: Severity = "error"
    numbers: tuple[float, ...] = ()


Check = Callable[[Plan, Claimed, Guarantee], Said | None]


@dataclass(frozen=True, slots=True)
class Lint:
    """A check with its code and its remedy, in which ``{}`` stands for a number of the plan."""

    code: str
    remedy: str
    check: Check

    def __call__(self, plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Finding | None:
        said = self.check(plan, claimed, guarantee)
        if said is None:
            return None
        remedy = self.remedy.format(*(f"{number:.1g}" for number in said.numbers))
        return Finding(code=self.code, severity=said.severity, message=said.message, remedy=remedy)


LINTS: list[Lint] = []


def lint(plan: Plan, guarantee: Guarantee | None = None) -> tuple[Finding, ...]:
    """All findings of a plan.

    Args:
        plan: with ``claimed`` filled as far as it is known; lints about a claim are silent without one.
        guarantee: of the same plan, if it is at hand already.
    """
    accounted, claimed = guarantee or account(plan), plan.claimed or Claimed()
    return tuple(finding for check in LINTS if (finding := check(plan, claimed, accounted)) is not None)


def rule(code: str, remedy: str) -> Callable[[Check], Check]:
    def listed(check: Check) -> Check:
        LINTS.append(Lint(code, remedy, check))
        return check

    return listed


def _epsilon(plan: Plan, **changes: Any) -> float:
    """ε of the plan as somebody else read it; not a number where no theorem covers that reading."""
    try:
        return account(replace(plan, **changes)).epsilon
    except UsageError:
        return math.nan


@rule(
    "noise-without-clip",
    "Clip each example's gradient, or the client's whole update, to a fixed norm before the noise.",
)
def noise_without_clip(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.clip == "none" and plan.least_noise > 0:
        return Said(
            "Noise is added but nothing is clipped: one record can move the update by any amount, so no ε holds."
        )
    return None


@rule("data-dependent-clip", "Fix the bound in advance, or estimate it by a private quantile and account for that too.")
def data_dependent_clip(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.clip == "data":
        return Said(
            "The clipping bound is computed from the private data (a maximum, a median): the noise scale leaks them."
        )
    return None


@rule("clip-per-tensor", "Clip each tensor to C over the root of their number, or the whole gradient to C.")
def clip_per_tensor(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.clip != "tensor" or plan.tensors is None or plan.tensors == 1:
        return None
    z = plan.least_noise
    return Said(
        f"{plan.tensors} tensors are clipped to C each, so one record moves the sum by √{plan.tensors}·C: the multiplier "
        f"{z:g} counts as {z / math.sqrt(plan.tensors):.4g}."
    )


@rule("clip-per-batch", "Clip each example's own gradient.")
def clip_per_batch(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.clip not in ("batch", "microbatch"):
        return None
    what = "batch" if plan.clip == "batch" else "group of examples"
    return Said(
        f"The gradient of a whole {what} is clipped: one record moves it from anywhere in the ball of radius C to anywhere, by up "
        f"to 2C, so the multiplier {plan.least_noise:g} counts as {plan.least_noise / 2:g}.",
        severity="error" if claimed.epsilon is not None and claimed.epsilon < guarantee.epsilon * 0.99 else "warning",
    )


@rule("batch-statistics", "Replace BatchNorm by GroupNorm or LayerNorm.")
def batch_statistics(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.normalization == "batch" and plan.clip in ("example", "tensor", "microbatch"):
        return Said("Layers use statistics of the batch: one record changes the gradient of every other in it.")
    return None


@rule(
    "unnoised-parameters",
    "Add noise to every shared parameter, zero rows included, or freeze it and share nothing of it.",
)
def unnoised_parameters(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.unnoised:
        names = ", ".join(plan.unnoised)
        return Said(f"{names} leaves without noise. For a token embedding its nonzero rows name the tokens.")
    return None


@rule("reused-seed", "Seed the noise once for the whole run from a secret source, and never in the loop.")
def reused_seed(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.noise_seed == "reused" and plan.steps > 1:
        return Said("Several steps draw the same noise: the difference of two releases has none.")
    return None


@rule("random-divisor", "Divide by the expected batch size, a constant.")
def random_divisor(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.divisor == "actual" and plan.sampling == "poisson":
        return Said(
            "The noisy sum is divided by the actual size of a Poisson batch. The size is private, and the noise scale tells it."
        )
    return None


@rule(
    "server-adds-noise",
    "Add noise at the client, or inside secure aggregation; or state the guarantee for the final model only.",
)
def server_adds_noise(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.noise_by == "server" and plan.view != "final_model":
        return Said("The adversary is the server, and the server adds the noise: it has seen the update before.")
    return None


@rule("laplace-sum", "Count the noise of one client, or add Gaussian noise.")
def laplace_sum(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.mechanism != "laplace" or plan.view != "secure_aggregation" or plan.clients == 1:
        return None
    root = math.sqrt(plan.clients)
    return Said(
        f"The sum of the Laplace noise of {plan.clients} clients is not Laplace noise of {root:.4g} times the scale. What holds is "
        f"ε = {guarantee.epsilon:.4g}, the noise of one client.",
        severity="error" if claimed.epsilon is not None and claimed.epsilon < guarantee.epsilon * 0.99 else "warning",
    )


_PARTICIPATION = "State ε for a unit that is what is drawn, and for an adversary who does not see the draw; or without amplification."


@rule("sampling-hides-nothing", _PARTICIPATION)
def sampling_hides_nothing(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    """Amplification that is claimed, or may be, for a unit that is not what is drawn, or against one who sees the draw."""
    axes = axes_of(plan)
    if axes.drawn == "nothing" or axes.sampling not in ("poisson", "fixed") or not math.isfinite(guarantee.epsilon):
        return None
    if (
        axes.clip == "microbatch"
        or find(plan)[0].law not in ("full", "known")
        or (axes.unit, axes.drawn) == ("user", "records")
    ):
        return None
    amplified = _epsilon(
        plan, sampled="records", clip="example", unit="record", view="final_model", participations=None
    )
    seen = "the adversary sees who takes part" if plan.view != "final_model" else "the unit is not what is drawn"
    who = "the client is in every step" if (axes.unit, axes.drawn) == ("client", "records") else seen
    return Said(
        f"A share of {plan.sampling_rate:g} of the {axes.drawn} is drawn and {who}: ε = {guarantee.epsilon:.4g}. With amplification "
        f"it would be {amplified:.4g}, which does not hold here.",
        severity="error" if claimed.epsilon is not None and claimed.epsilon < guarantee.epsilon * 0.99 else "warning",
    )


@rule("sampled-not-said", "Say sampled=records or sampled=clients.")
def sampled_not_said(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    axes = axes_of(plan)
    if plan.sampled is not None or axes.drawn == "nothing" or (axes.unit == "record" and axes.view == "final_model"):
        return None
    other = "records" if axes.drawn == "clients" else "clients"
    return Said(
        f"It is not said whether records or clients are drawn; {axes.drawn} are assumed, ε = {guarantee.epsilon:.4g}. For {other} it is "
        f"{_epsilon(plan, sampled=other):.4g}.",
        severity="warning",
    )


@rule("classical-gaussian", "Use the exact curve of the Gaussian mechanism: gradleak account --target-epsilon.")
def classical_gaussian(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.accountant != "classical":
        return None
    z = plan.least_noise
    epsilon = closed_forms.classical_epsilon(z, plan.delta) if claimed.epsilon is None else claimed.epsilon
    if epsilon <= CLASSICAL_PROVEN:
        return None
    exact = closed_forms.gaussian_epsilon(1 / z, plan.delta) if z else math.inf
    return Said(
        f"σ = √(2 ln(1.25/δ))/ε is proven for ε ≤ 1 and was used at ε = {epsilon:.4g}. One release with this noise has "
        f"ε = {exact:.4g}.",
        severity="error" if exact > epsilon * (1 + 1e-6) else "warning",
    )


@rule("central-limit", "State the ε of a privacy loss distribution (PLD or PRV).")
def central_limit(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.accountant != "gdp_clt":
        return None
    releases = [(p.noise_multiplier, p.steps) for p in plan.phases]
    says = closed_forms.central_limit_epsilon(releases, plan.sampling_rate, plan.delta)
    return Said(
        f"The central limit of Gaussian privacy is an approximation without a side: it says ε = {says:.4g}, a bound is "
        f"{guarantee.epsilon:.4g}.",
        severity="error" if says < guarantee.epsilon * (1 - 1e-3) else "warning",
    )


@rule("missing-composition", "Compose over every step in which the unit can take part.")
def missing_composition(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.steps is None or not 1 <= claimed.steps < plan.steps:
        return None
    stated = _epsilon(plan, phases=(replace(plan.phases[0], steps=claimed.steps),), participations=None)
    return Said(f"{plan.steps} releases were made and {claimed.steps} accounted for (ε = {stated:.4g} for those).")


@rule(
    "empty-history",
    "Attach the accountant's hook to the optimizer that really steps, and check that its history grows.",
)
def empty_history(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.steps != 0:
        return None
    return Said(
        f"The accountant has seen no step, as happens when another optimizer or hook takes its place; it would state ε = 0. "
        f"{plan.steps} steps have ε = {guarantee.epsilon:.4g}."
    )


@rule(
    "rate-too-low",
    "Account with the share of the records that a step really uses; batches over records, rounded up where it is rounded.",
)
def rate_too_low(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.sampling_rate is None or claimed.sampling_rate >= plan.sampling_rate * (1 - 1e-9):
        return None
    stated = _epsilon(plan, sampling_rate=claimed.sampling_rate)
    return Said(
        f"A step uses a share of {plan.sampling_rate:.6g}, and {claimed.sampling_rate:.6g} was accounted for, as happens when a batch "
        f"size or a number of batches is rounded: ε = {stated:.4g} against {guarantee.epsilon:.4g}."
    )


@rule("wrong-relation", "Compute and state ε for one relation, and name it.")
def wrong_relation(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.relation is None or claimed.relation == plan.relation:
        return None
    if {claimed.relation, plan.relation} == {"add_or_remove", "zero_out"} and plan.sampling in ("none", "poisson"):
        return None
    other = _epsilon(plan, relation=claimed.relation)
    return Said(
        f"ε was computed for {claimed.relation} and is stated for {plan.relation}: {other:.4g} against "
        f"{guarantee.epsilon:.4g} for the same noise.",
        severity="error" if other < guarantee.epsilon else "warning",
    )


_POISSON = "Draw every batch by a coin for each record (batches then vary in size), or state the larger ε."


@rule("shuffled-as-poisson", _POISSON)
def shuffled_as_poisson(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    return _as_poisson("shuffled", claimed, guarantee) if plan.sampling == "shuffle" else None


@rule("fixed-size-as-poisson", _POISSON)
def fixed_size_as_poisson(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    return _as_poisson("of fixed size", claimed, guarantee) if plan.sampling == "fixed" else None


def _as_poisson(kind: str, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.sampling != "poisson":
        return None
    poisson = "" if guarantee.poisson is None else f" Poisson accounting says ε = {guarantee.poisson:.4g}."
    lower = "" if guarantee.lower is None else f" The truth is at least {guarantee.lower:.4g}."
    # For very little noise the sum over many Poisson steps is the larger number, and then it holds.
    holds = guarantee.poisson is not None and guarantee.poisson >= guarantee.epsilon
    return Said(
        f"Batches are {kind} and were accounted for as Poisson samples.{poisson}{lower} What can be guaranteed is "
        f"{guarantee.epsilon:.4g}.",
        severity="warning" if holds else "error",
    )


@rule("wrong-view", "State ε for what the adversary sees.")
def wrong_view(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.view != "final_model" or plan.view == "final_model":
        return None
    other = _epsilon(plan, view="final_model")
    if not other < guarantee.epsilon:
        return None
    return Said(f"ε = {other:.4g} holds for the final model. The adversary here sees updates: {guarantee.epsilon:.4g}.")


@rule("record-for-user", "State the unit, or clip each user's whole update.")
def record_for_user(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if claimed.unit != "record" or plan.unit != "user" or plan.clip == "update" or plan.records_per_user == 1:
        return None
    return Said(
        f"ε = {_epsilon(plan, unit='record'):.4g} is for one record; a user has {plan.records_per_user}, and for a user it is "
        f"{guarantee.epsilon:.4g}."
    )


@rule("loose-delta", "Take δ well below {}.")
def loose_delta(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.records is None or plan.delta * plan.records < 1:
        return None
    return Said(
        f"δ = {plan.delta:g} is at least 1/{plan.records}: publishing one whole record at random would meet it.",
        severity="warning",
        numbers=(1 / plan.records,),
    )


@rule("delta-without-records", "Give records: how many there are; δ belongs well below one over it.")
def delta_without_records(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    if plan.records is not None or plan.delta < LARGE_DELTA:
        return None
    return Said(
        f"δ = {plan.delta:g} with an unknown number of records: with {math.ceil(1 / plan.delta)} or more, publishing one whole record at "
        "random would meet it.",
        severity="warning",
    )


@rule("claim-too-low", "State the ε that the plan has, or mend the plan.")
def claim_too_low(plan: Plan, claimed: Claimed, guarantee: Guarantee) -> Said | None:
    """Whatever the reason: a claim below a certified lower bound, or with none at all where there is no guarantee, is false."""
    floor = guarantee.lower if guarantee.lower is not None else guarantee.epsilon
    # A percent is what accountants differ by; below that no two of them agree.
    if claimed.epsilon is None or claimed.epsilon >= floor * 0.99:
        return None
    what = "no guarantee" if math.isinf(guarantee.epsilon) else f"ε = {guarantee.epsilon:.4g}"
    beside = "" if guarantee.lower is None else f" (and certainly not below {guarantee.lower:.4g})"
    return Said(f"ε = {claimed.epsilon:.4g} is claimed; this plan has {what}{beside}.")
