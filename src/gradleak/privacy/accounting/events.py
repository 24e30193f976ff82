"""Writes a release as a dp-accounting event, and keeps in one place what the two accountants of that library mean by a noise
multiplier. Must not know plans, and must not compute any ε.

The trap: for ``REPLACE_ONE`` the PLD accountant reads the multiplier of a Gaussian event in units of C, and doubles the
distance itself; the RDP accountant has no notion of C and reads it in units of the distance between neighbors, 2C. The same
event given to both is two mechanisms. Here the distance of the release is divided out, and ``neighboring`` names the relation that
belongs to the event, which is not always the plan's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from gradleak.privacy.plan.plan import Phase
from gradleak.privacy.plan.views import Release

if TYPE_CHECKING:
    from dp_accounting import DpEvent, NeighboringRelation

Engine = Literal["pld", "rdp"]
_LARGEST_GROUP = 512
_PHASES = 24
"""Distinct noise levels that a schedule is reduced to; each costs a convolution."""


def describe(release: Release, engine: Engine) -> DpEvent | None:
    """The event of all steps of the release in the units of ``engine``, or None if the engine has no such event.

    Guarantees:
        Never understates ε: a schedule with more than 24 levels is reduced by rounding multipliers down.
    """
    from dp_accounting import dp_event

    phases = reduced(release.phases)
    events = [_step(release, phase, engine) for phase in phases]
    known = [event for event in events if event is not None]
    if len(known) < len(events):
        return None
    return dp_event.ComposedDpEvent(
        [dp_event.SelfComposedDpEvent(event, phase.steps) for event, phase in zip(known, phases, strict=True)]
    )


def neighboring(release: Release) -> NeighboringRelation:
    """The relation under which the event of this release is to be read."""
    from dp_accounting import NeighboringRelation as Neighbors

    if release.law == "cut":
        return {
            "add_or_remove": Neighbors.ADD_OR_REMOVE_ONE,
            "zero_out": Neighbors.REPLACE_SPECIAL,
            "replace_one": Neighbors.REPLACE_ONE,
        }[release.relation]
    return Neighbors.REPLACE_ONE if release.law == "poisson_exchange" else Neighbors.ADD_OR_REMOVE_ONE


def _step(release: Release, phase: Phase, engine: Engine) -> DpEvent | None:
    from dp_accounting import dp_event

    z = phase.noise_multiplier / release.distance
    noise = dp_event.LaplaceDpEvent(z) if release.mechanism == "laplace" else dp_event.GaussianDpEvent(z)
    if release.law == "full":
        return noise
    if release.law == "poisson":
        if release.mechanism == "laplace" and engine == "rdp":
            return None
        return noise if release.rate == 1.0 else dp_event.PoissonSampledDpEvent(release.rate, noise)
    if engine == "rdp" or release.mechanism == "laplace":
        return None
    if release.law == "poisson_exchange":
        return dp_event.PoissonSampledDpEvent(release.rate, dp_event.GaussianDpEvent(2 * z))
    if release.law == "binomial":
        return _binomial(release, z)
    return _truncated(release, phase.noise_multiplier) if release.law == "cut" else None


def _truncated(release: Release, z: float) -> DpEvent:
    """Poisson batches cut to a limit: whoever is in may push another out."""
    from dp_accounting import dp_event

    assert release.records is not None and release.batch_limit is not None
    return dp_event.TruncatedSubsampledGaussianDpEvent(
        dataset_size=release.records,
        sampling_probability=release.rate,
        truncated_batch_size=release.batch_limit,
        noise_multiplier=z,
    )


def _binomial(release: Release, z: float) -> DpEvent | None:
    """k records that are drawn by themselves move the sum by a Binomial(k, q) number of C."""
    from dp_accounting import dp_event

    k, q = release.draws, release.rate
    if k > _LARGEST_GROUP:
        return None
    weights = [math.comb(k, i) * q**i * (1 - q) ** (k - i) for i in range(k + 1)]
    if q == 1.0:
        return dp_event.GaussianDpEvent(z / k)
    # What a float cannot hold beside 1 goes to the largest sensitivity, which errs upwards.
    kept = [i for i, weight in enumerate(weights) if weight > 1e-25 or i == k]
    probabilities = [weights[i] for i in kept]
    probabilities[-1] += max(0.0, 1.0 - sum(probabilities))
    return dp_event.MixtureOfGaussiansDpEvent(z, [float(i) for i in kept], probabilities)


def reduced(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """At most ``_PHASES`` levels, every multiplier rounded down to the smallest of its level."""
    levels = sorted({p.noise_multiplier for p in phases})
    if len(levels) > _PHASES:
        low, high = math.log(levels[0]), math.log(levels[-1])
        bins: dict[int, list[float]] = {}
        for z in levels:
            bins.setdefault(min(_PHASES - 1, int(_PHASES * (math.log(z) - low) / (high - low))), []).append(z)
        floor = {z: min(members) for members in bins.values() for z in members}
    else:
        floor = {z: z for z in levels}
    steps: dict[float, int] = {}
    for phase in phases:
        steps[floor[phase.noise_multiplier]] = steps.get(floor[phase.noise_multiplier], 0) + phase.steps
    return tuple(Phase(noise_multiplier=z, steps=n) for z, n in steps.items())
