"""Why: three numbers that are only worth something side by side: what was recovered, what *anyone* could recover, and what
the mechanism guarantees. They are ordered by mathematics, so an order that fails is a finding. Must not know models.

    measured attack ≤ Bayes-optimal ≤ instance bound ≤ mechanism bound ≤ e^ε κ + δ

each for the same secret, the same prior and the same view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradleak.privacy.accounting import gaussian, reconstruction
from gradleak.privacy.accounting.accountant import account, success
from gradleak.privacy.bounds import bayes, instance
from gradleak.privacy.bounds import poisson as sampled
from gradleak.privacy.bounds.bayes import Bayes, Rate
from gradleak.privacy.bounds.candidates import Candidates
from gradleak.privacy.bounds.poisson import Sampling
from gradleak.privacy.plan.plan import Phase, Plan

PESSIMISTIC = 2.0
"""Mechanism bound over instance bound from which on the worst case says little about this data."""
WEAK = 0.5
"""Measured over best possible below which an attack's failure must not be read as safety."""
_SLACK = 1e-9

ORDER = (
    "prior: the records were not drawn from the listed candidates with the stated weights, or the attack knows more than "
    "the list",
    "view: the attack saw more releases of the record than were counted, or the rest of the batch was not known as assumed",
    "noise: the code adds less than it claims; run the conformance test block by block (docs/guarantees.md, bug zoo)",
    "bound code: report it as a bug of gradleak, with the Gram matrix",
)
"""Where an order that fails is looked for, in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """The chain at one noise level.

    Attributes:
        noise_multiplier: z of one release.
        releases: T releases of the same gradient with independent noise; all that follows is for all of them together.
        sampling_rate: q, the chance that a release holds the record.
        best: Bayes-optimal success, leaked bits and the plain matched attack (estimated, with intervals).
        bits_cap: no release carries more bits (certified for this data).
        instance: cap for this data (certified; depends on the data, internal use).
        mechanism: cap for any data (certified).
        epsilon: ε of add-or-remove at ``delta``.
        approximate: e^ε κ + δ as it stands, at most 1 (certified).
    """

    noise_multiplier: float
    releases: int
    sampling_rate: float
    best: Bayes
    bits_cap: float
    instance: float
    mechanism: float
    epsilon: float
    delta: float
    approximate: float

    def advice(self) -> tuple[str, ...]:
        """What a reader should not conclude from this rung."""
        found = []
        if self.mechanism > PESSIMISTIC * self.instance:
            found.append(
                f"worst case is pessimistic for this data: the cap for any data is {self.mechanism / self.instance:.2g} times "
                "the cap for this data, which is no differential-privacy statement"
            )
        return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """Two slices in the wrong order.

    Attributes:
        lower, upper: their names; ``low`` is the least that the first can be, ``high`` the most that the second can be.
    """

    lower: str
    low: float
    upper: str
    high: float

    def diagnosis(self) -> str:
        """What happened and where to look, the likeliest place first."""
        places = "; ".join(f"{place}. {text}" for place, text in enumerate(ORDER, start=1))
        return (
            f"VIOLATION: {self.lower} is at least {self.low:.4g}, above {self.upper}, at most {self.high:.4g}. No attack can do "
            f"that, so one of these is wrong, to be checked in this order: {places}."
        )


def rung(
    candidates: Candidates,
    noise_multiplier: float,
    rng: np.random.Generator,
    *,
    releases: int = 1,
    sampling_rate: float = 1.0,
    delta: float = 1e-5,
    trials: int = bayes.TRIALS,
    confidence: float = 0.99,
) -> Rung:
    """The chain at one noise level, from the candidates' Gram matrix alone.

    Args:
        candidates: merged, so that no two are the same.
        noise_multiplier: z, positive.
        releases: T, at least 1: releases of the *same* gradient, each with fresh noise.
        sampling_rate: q in (0, 1], the chance that a release holds the record; drawn in secret.
        delta: at which ε is stated, in (0, 1).
        trials, confidence: of the Bayes rate.

    Raises:
        UsageError: for an argument out of range.
    """
    law = Sampling(noise_multiplier=noise_multiplier, releases=releases, rate=sampling_rate)
    if sampling_rate < 1.0:
        return _sampled(
            candidates, law, sampled.optimal(candidates, law, rng, trials=trials, confidence=confidence), delta
        )
    z = noise_multiplier / math.sqrt(releases)
    epsilon = gaussian.epsilon(z, delta)
    return Rung(
        noise_multiplier=noise_multiplier,
        releases=releases,
        sampling_rate=1.0,
        best=bayes.optimal(candidates, z, rng, trials=trials, confidence=confidence),
        bits_cap=bayes.bits_cap(candidates, z),
        instance=instance.bound(candidates, z),
        mechanism=reconstruction.gaussian(candidates.kappa, 1.0 / z),
        epsilon=epsilon,
        delta=delta,
        approximate=_approximate(epsilon, delta, candidates.kappa),
    )


def _sampled(candidates: Candidates, law: Sampling, best: Bayes, delta: float) -> Rung:
    """Of several caps that all hold, the smallest: what the coins' secrecy buys shows in the accountant's alone."""
    plan = Plan(
        phases=(Phase(noise_multiplier=law.noise_multiplier, steps=law.releases),),
        delta=delta,
        sampled="records",
        sampling="poisson",
        sampling_rate=law.rate,
    )
    epsilon, kappa = account(plan).epsilon, candidates.kappa
    approximate = _approximate(epsilon, delta, kappa)
    mechanism = min(approximate, success(plan, kappa), sampled.mechanism_bound(kappa, law))
    return Rung(
        noise_multiplier=law.noise_multiplier,
        releases=law.releases,
        sampling_rate=law.rate,
        best=best,
        bits_cap=sampled.bits_cap(candidates, law),
        instance=min(mechanism, sampled.instance_bound(candidates, law)),
        mechanism=mechanism,
        epsilon=epsilon,
        delta=delta,
        approximate=approximate,
    )


def _approximate(epsilon: float, delta: float, kappa: float) -> float:
    return min(1.0, math.exp(min(epsilon, 700.0)) * kappa + delta)


def violations(step: Rung, measured: Mapping[str, Rate]) -> tuple[Violation, ...]:
    """Every pair of slices in the wrong order, at the confidence of the rates.

    Args:
        measured: attacks by name, on releases of the real mechanism for the same secret, prior and view.
    """
    caps = (
        ("the Bayes-optimal rate", step.best.success.high),
        ("the instance bound", step.instance),
        ("the mechanism bound", step.mechanism),
        ("e^ε κ + δ", step.approximate),
    )
    lows = [(f"the attack {name}", rate.low, 0) for name, rate in measured.items()]
    lows += [("the matched attack", step.best.matched.low, 0), ("the Bayes-optimal rate", step.best.success.low, 1)]
    lows += [("the instance bound", step.instance, 2), ("the mechanism bound", step.mechanism, 3)]
    return tuple(
        Violation(lower=lower, low=low, upper=upper, high=high)
        for lower, low, first in lows
        for upper, high in caps[first:]
        if low > high + _SLACK
    )


def is_weak(rate: Rate, step: Rung) -> bool:
    """True if an attack surely reaches less than half of what is possible: its failure is no safety."""
    return rate.high < WEAK * step.best.success.low
