"""What a target costs. Puts every target on one axis, the noise multiplier, with the ε that comes with it and the noise variance
relative to ε = 8: the bounds on training depend on the noise only through its square. Must not know how it is printed.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradleak.privacy.accounting.accountant import curve
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.plan.views import resolve
from gradleak.privacy.targets.calibrate import calibrate, scaled
from gradleak.privacy.targets.targets import BitsAtMost, EpsilonAtMost, SpanDead, SuccessAtMost, Target

REFERENCE = EpsilonAtMost(epsilon=8.0)
VOCABULARY = 50257
"""Entries of GPT-2's vocabulary, the list that a secret token hides in."""

FRONTIER: tuple[Target, ...] = (
    SpanDead(columns=768),
    SuccessAtMost(probability=0.5, candidates=VOCABULARY),
    SuccessAtMost(probability=0.01, candidates=VOCABULARY),
    REFERENCE,
    SuccessAtMost(probability=0.1, candidates=512),
    BitsAtMost(bits=1.0),
    SuccessAtMost(probability=0.01, candidates=512),
    EpsilonAtMost(epsilon=1.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The noise for one target.

    Attributes:
        noise_multiplier: the least, for the plan's steps and sampling (of the least noisy step of a schedule).
        epsilon: of the plan with that noise.
        relative_variance: square of it over that of ε ≤ 8; None where nothing was compared.
    """

    target: str
    noise_multiplier: float
    epsilon: float
    relative_variance: float | None


def noise_for(plan: Plan, target: Target, *, reference: float | None = None) -> Price:
    """The least noise for ``target``. Raises ``UsageError`` if no noise reaches it."""
    calibrated = scaled(plan, calibrate(plan, target))
    return Price(
        target=str(target),
        noise_multiplier=calibrated.least_noise,
        epsilon=curve(resolve(calibrated)).epsilon(plan.delta),
        relative_variance=None if reference is None else (calibrated.least_noise / reference) ** 2,
    )


def compare(plan: Plan, targets: tuple[Target, ...] = FRONTIER) -> tuple[Price, ...]:
    """Every target's price, cheapest first."""
    reference = noise_for(plan, REFERENCE).noise_multiplier
    prices = [noise_for(plan, target, reference=reference) for target in targets]
    return tuple(sorted(prices, key=lambda price: price.noise_multiplier))
