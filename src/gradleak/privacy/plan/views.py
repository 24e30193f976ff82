"""Why: gradient leakage is about an adversary who sees gradients, so the same plan has another ε for each view. This is the
one place where a plan becomes what that adversary sees of one protected unit. Must not compute any ε.

    final_model               the model, at any or all steps; who was sampled stays secret
    server_sees_each_update   each client's update: sampling of *clients* is no secret, so each participation is a full release;
                              sampling of records inside a client still is
    secure_aggregation        the sum over M honest clients: the noise multiplier of the sum is √M times that of one client
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradleak.privacy.plan.plan import Mechanism, Phase, Plan, Relation, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What the adversary sees of one protected unit, in the fewest numbers that decide ε.

    Attributes:
        phases: noise multipliers in units of the largest effect of one *record's* removal, with the steps they hold for.
        sampling, rate: the part of the sampling that is secret.
        group: k, records of the protected unit; each is drawn by itself.
        relation: the neighboring relation that the numbers are for.
        batch_limit, records: where Poisson batches of so many records are cut to a limit; both None otherwise.
        notes: what had to be assumed.
    """

    mechanism: Mechanism
    phases: tuple[Phase, ...]
    sampling: Sampling
    rate: float
    group: int
    relation: Relation
    batch_limit: int | None = None
    records: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def epochs(self) -> int:
        """Passes over the data, a started one counted."""
        return math.ceil(self.steps * self.rate * (1 - 1e-12))


def refusal(plan: Plan) -> str | None:
    """Why this plan has no ε at all, or None if it has one."""
    return next((sentence for holds, sentence in _refusals(plan) if holds), None)


def resolve(plan: Plan) -> Release:
    """The releases that the plan's view leaves. Call ``refusal`` first: the numbers of a refused plan mean nothing."""
    notes: list[str] = []
    phases, sampling, rate = plan.phases, plan.sampling, plan.sampling_rate
    if plan.view != "final_model" and plan.sampled != "records" and sampling != "none":
        steps = plan.participations or math.ceil(rate * plan.steps * (1 - 1e-12))
        notes.append(
            f"the server knows who takes part, so sampling of clients buys nothing: {steps} full releases"
            + ("" if plan.participations else " (the expected number; a client that is drawn more often has less)")
        )
        if plan.sampled is None:
            notes.append(
                "what is sampled was not said and is taken for clients; say sampled=records if records are drawn in secret"
            )
        phases, sampling, rate = _least_noisy(phases, steps), "none", 1.0
    factor = 1.0
    if plan.view == "secure_aggregation" and plan.clients > 1:
        factor *= math.sqrt(plan.clients)
        notes.append(f"{plan.clients} honest clients add independent noise and none of them colludes with the server")
    if plan.clip == "tensor" and plan.tensors > 1:
        factor /= plan.tensors if plan.mechanism == "laplace" else math.sqrt(plan.tensors)
        notes.append(f"{plan.tensors} parts clipped to C each have sensitivity √{plan.tensors}·C together")
    if plan.mechanism == "tree":
        phases = tuple(Phase(noise_multiplier=p.noise_multiplier / math.sqrt(nodes(p.steps))) for p in phases)
        notes.append(
            "the unit takes part at most once in each tree; a tree counts as one Gaussian release of all its nodes"
        )
    relation = plan.relation
    if relation == "add_or_remove" and (sampling in ("shuffle", "fixed") or plan.mechanism == "tree"):
        relation = "zero_out"
        notes.append("removing a record would move others to other steps; accounted for a record set to zero")
    group = plan.records_per_user if plan.unit == "user" and plan.clip != "update" else 1
    limit = plan.batch_limit if sampling == "poisson" and rate < 1.0 else None
    return Release(
        mechanism="laplace" if plan.mechanism == "laplace" else "gaussian",
        phases=tuple(Phase(noise_multiplier=p.noise_multiplier * factor, steps=p.steps) for p in phases),
        sampling="none" if rate == 1.0 and sampling != "shuffle" else sampling,
        rate=rate,
        group=group,
        relation=relation,
        batch_limit=limit,
        records=None if limit is None else plan.records,
        notes=tuple(notes),
    )


def nodes(leaves: int) -> int:
    """The most nodes of a binary tree over so many leaves that one leaf is part of: ⌊log₂ leaves⌋ + 1.

    A node is released once all its leaves are in, so the deepest leaf lies in one node of every size 1, 2, 4, … up to the
    largest power of two that is not above ``leaves``. A unit in one leaf moves each of them by at most C: √nodes·C in all.

    Source: Kairouz et al., arXiv 2103.00039, for the mechanism; the count is derived here.
    """
    return leaves.bit_length()


def _least_noisy(phases: tuple[Phase, ...], steps: int) -> tuple[Phase, ...]:
    """The worst case of ``steps`` participations: those with the least noise."""
    kept: list[Phase] = []
    for phase in sorted(phases, key=lambda p: p.noise_multiplier):
        taken = min(steps, phase.steps)
        if taken:
            kept.append(Phase(noise_multiplier=phase.noise_multiplier, steps=taken))
        steps -= taken
    return tuple(kept)


def _refusals(plan: Plan) -> tuple[tuple[bool, str], ...]:
    return (
        (
            plan.clip == "none",
            "nothing is clipped, so one record can move the update by any amount and no noise is enough. Clip each example (or the "
            "whole update) to a fixed norm.",
        ),
        (
            plan.clip == "data",
            "the clipping bound follows the private data: the noise scale itself tells about them, and no sensitivity is fixed. "
            "Fix C in advance, or find it by a private quantile.",
        ),
        (
            bool(plan.unnoised),
            f"{', '.join(plan.unnoised)} is released without noise. Noise must reach every shared parameter, zero rows included.",
        ),
        (
            plan.noise_seed == "reused" and plan.steps > 1,
            "the same noise is drawn in several steps, so their difference has none. Draw fresh noise in each step.",
        ),
        (
            plan.divisor == "actual" and plan.sampling == "poisson",
            "the noisy sum is divided by the actual batch size, which is random and private: the noise scale tells it. Divide by the "
            "expected batch size.",
        ),
        (
            plan.view != "final_model" and plan.noise_by == "server",
            "the server adds the noise, and this adversary is the server: it sees what came before. Let each client add noise.",
        ),
        (plan.least_noise == 0, "some step adds no noise, and what is seen once without noise stays seen."),
    )
