"""Why: most wrong epsilons are wrong for one of a dozen known reasons. Compares what a plan does with what was claimed for it,
and says what the difference costs. Must not know files or the command line.

A lint is a function of the plan that returns a finding or None; ``LINTS`` lists them in the order of the docs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from gradleak.privacy import closed_forms
from gradleak.privacy.accountant import Guarantee, account
from gradleak.privacy.plan import Plan

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


def lint(plan: Plan, guarantee: Guarantee | None = None) -> tuple[Finding, ...]:
    """All findings of a plan.

    Args:
        plan: with ``claimed`` filled as far as it is known; lints about a claim are silent without one.
        guarantee: of the same plan, if it is at hand already.
    """
    found = guarantee or account(plan)
    return tuple(finding for check in LINTS if (finding := check(plan, found)) is not None)


def noise_without_clip(plan: Plan, _: Guarantee) -> Finding | None:
    if plan.clip != "none" or plan.least_noise == 0:
        return None
    return Finding(
        code="noise-without-clip",
        severity="error",
        message="Noise is added but nothing is clipped: one record can move the update by any amount, so no ε holds.",
        remedy="Clip each example's gradient, or the client's whole update, to a fixed norm before the noise.",
    )


def data_dependent_clip(plan: Plan, _: Guarantee) -> Finding | None:
    if plan.clip != "data":
        return None
    return Finding(
        code="data-dependent-clip",
        severity="error",
        message="The clipping bound is computed from the private data (a maximum, a median): the noise scale leaks them.",
        remedy="Fix the bound in advance, or estimate it by a private quantile and account for that too.",
    )


def clip_per_tensor(plan: Plan, _: Guarantee) -> Finding | None:
    if plan.clip != "tensor" or plan.tensors == 1:
        return None
    z = plan.least_noise
    return Finding(
        code="clip-per-tensor",
        severity="error",
        message=f"{plan.tensors} tensors are clipped to C each, so one record moves the sum by √{plan.tensors}·C: the multiplier "
        f"{z:g} counts as {z / math.sqrt(plan.tensors):.4g}.",
        remedy=f"Clip each tensor to C/√{plan.tensors}, or the whole gradient to C.",
    )


def unnoised_parameters(plan: Plan, _: Guarantee) -> Finding | None:
    if not plan.unnoised:
        return None
    return Finding(
        code="unnoised-parameters",
        severity="error",
        message=f"{', '.join(plan.unnoised)} leaves without noise. For a token embedding its nonzero rows name the tokens.",
        remedy="Add noise to every shared parameter, zero rows included, or freeze it and share nothing of it.",
    )


def reused_seed(plan: Plan, _: Guarantee) -> Finding | None:
    if plan.noise_seed != "reused":
        return None
    return Finding(
        code="reused-seed",
        severity="error",
        message="Several steps draw the same noise: the difference of two releases has none.",
        remedy="Seed the noise once for the whole run from a secret source, and never in the loop.",
    )


def random_divisor(plan: Plan, _: Guarantee) -> Finding | None:
    if plan.divisor != "actual" or plan.sampling != "poisson":
        return None
    return Finding(
        code="random-divisor",
        severity="error",
        message="The noisy sum is divided by the actual size of a Poisson batch. The size is private, and the noise scale tells it.",
        remedy="Divide by the expected batch size, a constant.",
    )


def server_adds_noise(plan: Plan, _: Guarantee) -> Finding | None:
    if plan.noise_by != "server" or plan.view == "final_model":
        return None
    return Finding(
        code="server-adds-noise",
        severity="error",
        message="The adversary is the server, and the server adds the noise: it has seen the update before.",
        remedy="Add noise at the client, or inside secure aggregation; or state the guarantee for the final model only.",
    )


def classical_gaussian(plan: Plan, found: Guarantee) -> Finding | None:
    claimed = plan.claimed
    if claimed is None or claimed.accountant != "classical":
        return None
    epsilon = claimed.epsilon
    if epsilon is None:
        epsilon = closed_forms.classical_epsilon(plan.least_noise, plan.delta)
    if epsilon <= CLASSICAL_PROVEN:
        return None
    exact = closed_forms.gaussian_epsilon(1 / plan.least_noise, plan.delta) if plan.least_noise else math.inf
    return Finding(
        code="classical-gaussian",
        severity="error" if exact > epsilon * (1 + 1e-6) else "warning",
        message=f"σ = √(2 ln(1.25/δ))/ε is proven for ε ≤ 1 and was used at ε = {epsilon:.4g}. One release with this noise has "
        f"ε = {exact:.4g}.",
        remedy="Use the exact curve of the Gaussian mechanism: gradleak account --target-epsilon.",
    )


def central_limit(plan: Plan, found: Guarantee) -> Finding | None:
    if plan.claimed is None or plan.claimed.accountant != "gdp_clt":
        return None
    releases = [(p.noise_multiplier, p.steps) for p in plan.phases]
    says = closed_forms.central_limit_epsilon(releases, plan.sampling_rate, plan.delta)
    return Finding(
        code="central-limit",
        severity="error" if says < found.epsilon * (1 - 1e-3) else "warning",
        message=f"The central limit of Gaussian privacy is an approximation without a side: it says ε = {says:.4g}, a bound is "
        f"{found.epsilon:.4g}.",
        remedy="State the ε of a privacy loss distribution (PLD or PRV).",
    )


def missing_composition(plan: Plan, _: Guarantee) -> Finding | None:
    if plan.claimed is None or plan.claimed.steps is None or plan.claimed.steps >= plan.steps:
        return None
    stated = account(replace(plan, phases=(replace(plan.phases[0], steps=plan.claimed.steps),), participations=None))
    return Finding(
        code="missing-composition",
        severity="error",
        message=f"{plan.steps} releases were made and {plan.claimed.steps} accounted for (ε = {stated.epsilon:.4g} for those).",
        remedy="Compose over every step in which the unit can take part.",
    )


def wrong_relation(plan: Plan, found: Guarantee) -> Finding | None:
    claimed = plan.claimed
    if claimed is None or claimed.relation is None or claimed.relation == plan.relation:
        return None
    if {claimed.relation, plan.relation} == {"add_or_remove", "zero_out"} and plan.sampling in ("none", "poisson"):
        return None
    other = account(replace(plan, relation=claimed.relation))
    return Finding(
        code="wrong-relation",
        severity="error" if other.epsilon < found.epsilon else "warning",
        message=f"ε was computed for {claimed.relation} and is stated for {plan.relation}: {other.epsilon:.4g} against "
        f"{found.epsilon:.4g} for the same noise.",
        remedy="Compute and state ε for one relation, and name it.",
    )


def shuffled_as_poisson(plan: Plan, found: Guarantee) -> Finding | None:
    claimed = plan.claimed
    if claimed is None or claimed.sampling != "poisson" or plan.sampling in ("poisson", "none"):
        return None
    kind = {"shuffle": "shuffled", "fixed": "of fixed size"}[plan.sampling]
    lower = "" if found.lower is None else f" The truth is at least {found.lower:.4g}."
    poisson = "" if found.poisson is None else f" Poisson accounting says ε = {found.poisson:.4g}."
    # For very little noise the sum over many Poisson steps is the larger number, and then it holds.
    holds = found.poisson is not None and found.poisson >= found.epsilon
    return Finding(
        code="shuffled-as-poisson" if plan.sampling == "shuffle" else "fixed-size-as-poisson",
        severity="warning" if holds else "error",
        message=f"Batches are {kind} and were accounted for as Poisson samples.{poisson}{lower} What can be guaranteed is "
        f"{found.epsilon:.4g}.",
        remedy="Draw every batch by a coin for each record (batches then vary in size), or state the larger ε.",
    )


def seen_participation(plan: Plan, found: Guarantee) -> Finding | None:
    claimed = plan.claimed
    if claimed is None or claimed.view != "final_model" or plan.view == "final_model":
        return None
    other = account(replace(plan, view="final_model"))
    if not other.epsilon < found.epsilon:
        return None
    return Finding(
        code="wrong-view",
        severity="error",
        message=f"ε = {other.epsilon:.4g} holds for the final model. The adversary here sees updates: {found.epsilon:.4g}.",
        remedy="State ε for what the adversary sees.",
    )


def record_for_user(plan: Plan, found: Guarantee) -> Finding | None:
    claimed = plan.claimed
    if claimed is None or claimed.unit != "record" or plan.unit != "user" or plan.clip == "update":
        return None
    if plan.records_per_user == 1:
        return None
    other = account(replace(plan, unit="record"))
    return Finding(
        code="record-for-user",
        severity="error",
        message=f"ε = {other.epsilon:.4g} is for one record; a user has {plan.records_per_user}, and for a user it is "
        f"{found.epsilon:.4g}.",
        remedy="State the unit, or clip each user's whole update.",
    )


def loose_delta(plan: Plan, _: Guarantee) -> Finding | None:
    if plan.records is None or plan.delta * plan.records < 1:
        return None
    return Finding(
        code="loose-delta",
        severity="warning",
        message=f"δ = {plan.delta:g} is at least 1/{plan.records}: publishing one whole record at random would meet it.",
        remedy=f"Take δ well below {1 / plan.records:.1g}.",
    )


def claim_too_low(plan: Plan, found: Guarantee) -> Finding | None:
    """Whatever the reason: a claim below a certified lower bound, or with none at all where there is no guarantee, is false."""
    claimed = plan.claimed
    if claimed is None or claimed.epsilon is None:
        return None
    floor = found.lower if found.lower is not None else found.epsilon
    # A percent is what accountants differ by; below that no two of them agree.
    if claimed.epsilon >= floor * 0.99:
        return None
    what = "no guarantee" if math.isinf(found.epsilon) else f"ε = {found.epsilon:.4g}"
    beside = "" if found.lower is None else f" (and certainly not below {found.lower:.4g})"
    return Finding(
        code="claim-too-low",
        severity="error",
        message=f"ε = {claimed.epsilon:.4g} is claimed; this plan has {what}{beside}.",
        remedy="State the ε that the plan has, or mend the plan.",
    )


LINTS: tuple[Callable[[Plan, Guarantee], Finding | None], ...] = (
    noise_without_clip,
    data_dependent_clip,
    clip_per_tensor,
    unnoised_parameters,
    reused_seed,
    random_divisor,
    server_adds_noise,
    classical_gaussian,
    central_limit,
    missing_composition,
    wrong_relation,
    shuffled_as_poisson,
    seen_participation,
    record_for_user,
    loose_delta,
    claim_too_low,
)
