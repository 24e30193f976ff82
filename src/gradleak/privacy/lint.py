"""Why: most wrong epsilons are wrong for one of a dozen known reasons. Compares what a plan does with what was claimed for it,
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
from gradleak.privacy.plan.plan import Claimed, Plan

Severity = Literal["error", "warning"]

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

    def __call__(self, plan: Plan, claimed: Claimed, found: Guarantee) -> Finding | None:
        said = self.check(plan, claimed, found)
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
    found, claimed = guarantee or account(plan), plan.claimed or Claimed()
    return tuple(finding for check in LINTS if (finding := check(plan, claimed, found)) is not None)


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
def noise_without_clip(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if plan.clip == "none" and plan.least_noise > 0:
        return Said(
            "Noise is added but nothing is clipped: one record can move the update by any amount, so no ε holds."
        )
    return None


@rule("data-dependent-clip", "Fix the bound in advance, or estimate it by a private quantile and account for that too.")
def data_dependent_clip(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if plan.clip == "data":
        return Said(
            "The clipping bound is computed from the private data (a maximum, a median): the noise scale leaks them."
        )
    return None


@rule("clip-per-tensor", "Clip each tensor to C over the root of their number, or the whole gradient to C.")
def clip_per_tensor(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if plan.clip != "tensor" or plan.tensors is None or plan.tensors == 1:
        return None
    z = plan.least_noise
    return Said(
        f"{plan.tensors} tensors are clipped to C each, so one record moves the sum by √{plan.tensors}·C: the multiplier "
        f"{z:g} counts as {z / math.sqrt(plan.tensors):.4g}."
    )


@rule(
    "unnoised-parameters",
    "Add noise to every shared parameter, zero rows included, or freeze it and share nothing of it.",
)
def unnoised_parameters(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if plan.unnoised:
        names = ", ".join(plan.unnoised)
        return Said(f"{names} leaves without noise. For a token embedding its nonzero rows name the tokens.")
    return None


@rule("reused-seed", "Seed the noise once for the whole run from a secret source, and never in the loop.")
def reused_seed(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if plan.noise_seed == "reused" and plan.steps > 1:
        return Said("Several steps draw the same noise: the difference of two releases has none.")
    return None


@rule("random-divisor", "Divide by the expected batch size, a constant.")
def random_divisor(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if plan.divisor == "actual" and plan.sampling == "poisson":
        return Said(
            "The noisy sum is divided by the actual size of a Poisson batch. The size is private, and the noise scale tells it."
        )
    return None


@rule(
    "server-adds-noise",
    "Add noise at the client, or inside secure aggregation; or state the guarantee for the final model only.",
)
def server_adds_noise(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if plan.noise_by == "server" and plan.view != "final_model":
        return Said("The adversary is the server, and the server adds the noise: it has seen the update before.")
    return None


@rule("classical-gaussian", "Use the exact curve of the Gaussian mechanism: gradleak account --target-epsilon.")
def classical_gaussian(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
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
def central_limit(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if claimed.accountant != "gdp_clt":
        return None
    releases = [(p.noise_multiplier, p.steps) for p in plan.phases]
    says = closed_forms.central_limit_epsilon(releases, plan.sampling_rate, plan.delta)
    return Said(
        f"The central limit of Gaussian privacy is an approximation without a side: it says ε = {says:.4g}, a bound is "
        f"{found.epsilon:.4g}.",
        severity="error" if says < found.epsilon * (1 - 1e-3) else "warning",
    )


@rule("missing-composition", "Compose over every step in which the unit can take part.")
def missing_composition(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if claimed.steps is None or claimed.steps >= plan.steps:
        return None
    stated = _epsilon(plan, phases=(replace(plan.phases[0], steps=claimed.steps),), participations=None)
    return Said(f"{plan.steps} releases were made and {claimed.steps} accounted for (ε = {stated:.4g} for those).")


@rule(
    "rate-too-low",
    "Account with the share of the records that a step really uses; batches over records, rounded up where it is rounded.",
)
def rate_too_low(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if claimed.sampling_rate is None or claimed.sampling_rate >= plan.sampling_rate * (1 - 1e-9):
        return None
    stated = _epsilon(plan, sampling_rate=claimed.sampling_rate)
    return Said(
        f"A step uses a share of {plan.sampling_rate:.6g}, and {claimed.sampling_rate:.6g} was accounted for, as happens when a batch "
        f"size or a number of batches is rounded: ε = {stated:.4g} against {found.epsilon:.4g}."
    )


@rule("wrong-relation", "Compute and state ε for one relation, and name it.")
def wrong_relation(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if claimed.relation is None or claimed.relation == plan.relation:
        return None
    if {claimed.relation, plan.relation} == {"add_or_remove", "zero_out"} and plan.sampling in ("none", "poisson"):
        return None
    other = _epsilon(plan, relation=claimed.relation)
    return Said(
        f"ε was computed for {claimed.relation} and is stated for {plan.relation}: {other:.4g} against "
        f"{found.epsilon:.4g} for the same noise.",
        severity="error" if other < found.epsilon else "warning",
    )


_POISSON = "Draw every batch by a coin for each record (batches then vary in size), or state the larger ε."


@rule("shuffled-as-poisson", _POISSON)
def shuffled_as_poisson(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    return _as_poisson("shuffled", claimed, found) if plan.sampling == "shuffle" else None


@rule("fixed-size-as-poisson", _POISSON)
def fixed_size_as_poisson(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    return _as_poisson("of fixed size", claimed, found) if plan.sampling == "fixed" else None


def _as_poisson(kind: str, claimed: Claimed, found: Guarantee) -> Said | None:
    if claimed.sampling != "poisson":
        return None
    poisson = "" if found.poisson is None else f" Poisson accounting says ε = {found.poisson:.4g}."
    lower = "" if found.lower is None else f" The truth is at least {found.lower:.4g}."
    # For very little noise the sum over many Poisson steps is the larger number, and then it holds.
    holds = found.poisson is not None and found.poisson >= found.epsilon
    return Said(
        f"Batches are {kind} and were accounted for as Poisson samples.{poisson}{lower} What can be guaranteed is "
        f"{found.epsilon:.4g}.",
        severity="warning" if holds else "error",
    )


@rule("wrong-view", "State ε for what the adversary sees.")
def wrong_view(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if claimed.view != "final_model" or plan.view == "final_model":
        return None
    other = _epsilon(plan, view="final_model")
    if not other < found.epsilon:
        return None
    return Said(f"ε = {other:.4g} holds for the final model. The adversary here sees updates: {found.epsilon:.4g}.")


@rule("record-for-user", "State the unit, or clip each user's whole update.")
def record_for_user(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if claimed.unit != "record" or plan.unit != "user" or plan.clip == "update" or plan.records_per_user == 1:
        return None
    return Said(
        f"ε = {_epsilon(plan, unit='record'):.4g} is for one record; a user has {plan.records_per_user}, and for a user it is "
        f"{found.epsilon:.4g}."
    )


@rule("loose-delta", "Take δ well below {}.")
def loose_delta(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    if plan.records is None or plan.delta * plan.records < 1:
        return None
    return Said(
        f"δ = {plan.delta:g} is at least 1/{plan.records}: publishing one whole record at random would meet it.",
        severity="warning",
        numbers=(1 / plan.records,),
    )


@rule("claim-too-low", "State the ε that the plan has, or mend the plan.")
def claim_too_low(plan: Plan, claimed: Claimed, found: Guarantee) -> Said | None:
    """Whatever the reason: a claim below a certified lower bound, or with none at all where there is no guarantee, is false."""
    floor = found.lower if found.lower is not None else found.epsilon
    # A percent is what accountants differ by; below that no two of them agree.
    if claimed.epsilon is None or claimed.epsilon >= floor * 0.99:
        return None
    what = "no guarantee" if math.isinf(found.epsilon) else f"ε = {found.epsilon:.4g}"
    beside = "" if found.lower is None else f" (and certainly not below {found.lower:.4g})"
    return Said(f"ε = {claimed.epsilon:.4g} is claimed; this plan has {what}{beside}.")
