"""Lower bounds on the true ε of shuffled batches and of batches of fixed size, by one bad data set and one test each: they are no
Poisson samples, and accounting for them as such can miss ε by a factor of 60. A claim below these is false. Must not know plans.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr  # pyright: ignore[reportMissingTypeStubs]

from gradleak.privacy.accounting.closed_forms import root

_THRESHOLDS = 4000


def shuffle_delta(
    epsilon: float, noise_multiplier: float, batches: int, *, share: float = 1.0, exchanged: bool = False
) -> float:
    """A lower bound on δ(ε) of T shuffled batches, in one of which the target is with probability w.

    All other records contribute -1 along an axis of their batch, the target +1, against 0 (zero-out) or -1 (exchange). Up to what both
    share, the batches are N(2e_t, z²I) against N(e_t, z²I) or N(0, z²I), t uniform over all T. The test "the largest coordinate
    exceeds c" gives

        δ ≥ max_c w·{[1 - Φ((c-2)/z)·Φ(c/z)^{T-1}] - e^ε·[1 - Φ((c-h)/z)·Φ(c/z)^{T-1}]} - (1-w)·(e^ε-1)·[1 - Φ(c/z)^T],

    h = 1 or 0; the last term is the run whose target is in none of these batches.

    Args:
        epsilon: at least 0. noise_multiplier: z, positive. batches: T, at least 1, released batches of one epoch.
        share: w in (0, 1]. exchanged: the relation is replace-one.

    Guarantees:
        Both chances are kept as logarithms, the subtracted ones from above: rounding makes the bound smaller.

    Source: Chua et al., arXiv 2403.17673, for the pair, as quoted in the project's notes; runs of part of an epoch and exchange derived here.
    """
    z, count = noise_multiplier, batches
    c = np.linspace(-2.0, 2.0 + z * (12.0 + math.sqrt(2 * math.log(batches)) + epsilon * z), _THRESHOLDS)
    with_target = math.log(share) + _log_exceeds(c, 2.0, z, count - 1, above=False)
    without = math.log(share) + epsilon + _log_exceeds(c, 0.0 if exchanged else 1.0, z, count - 1, above=True)
    if share < 1.0 and epsilon > 0.0:
        unseen = math.log1p(-share) + _log_of_expm1(epsilon) + _log_exceeds(c, 0.0, z, count - 1, above=True)
        without = np.logaddexp(without, unseen)
    gain = np.where(without < with_target, -np.expm1(np.minimum(without - with_target, 0.0)), 0.0)
    return float(np.max(np.exp(with_target) * gain))


def shuffle_epsilon(
    noise_multiplier: float, batches: int, delta: float, *, share: float = 1.0, exchanged: bool = False
) -> float:
    """The ε below which so many shuffled batches are certainly not (ε, δ)-private; see ``shuffle_delta``."""

    def excess(epsilon: float) -> float:
        value = shuffle_delta(epsilon, noise_multiplier, batches, share=share, exchanged=exchanged)
        return value - delta

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, 2 * high
    return root(excess, low, high)


def _log_exceeds(c: NDArray[np.float64], height: float, z: float, others: int, *, above: bool) -> NDArray[np.float64]:
    """ln P(largest of N(height) and ``others`` of N(0) > c), rounded to the side that is asked for where it is small."""
    own, rest = log_ndtr((height - c) / z), log_ndtr(-c / z)
    union = np.logaddexp(own, math.log(others) + rest) if others else own
    largest = np.maximum(own, rest) if others else own
    inside = log_ndtr((c - height) / z) + others * log_ndtr(c / z)
    with np.errstate(divide="ignore"):
        exact = np.log(-np.expm1(np.minimum(inside, 0.0)))
    # Below 1e-9 the union bound and the largest term are the two sides; above, one minus the product has all its digits.
    return np.where(union < math.log(1e-9), union if above else largest, exact)


def _log_of_expm1(x: float) -> float:
    return x + math.log(-math.expm1(-x))


def fixed_size_epsilon(
    noise_multiplier: float, rate: float, steps: int, delta: float, *, exchanged: bool = True
) -> float:
    """The ε below which training on fresh fixed-size batches is certainly not (ε, δ)-private.

    Exchange: all others contribute -1 and the target +1 or -1. After the constant is taken off, a step releases
    2·[target drawn] + z·noise against z·noise: the Poisson pair at multiplier z/2. Zero-out: the others are zero as well, the Poisson
    pair at z. Rounded towards less privacy loss, so that it stays a lower bound.

    Source: Lebeda et al., arXiv 2405.20769, as quoted in the project's notes; the data set of zero-out derived here.
    """
    from dp_accounting.pld import privacy_loss_distribution

    pld = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier / (2 if exchanged else 1),
        pessimistic_estimate=False,
        use_connect_dots=False,
        sampling_prob=rate,
        # Rounding down costs about a third of an interval in each step: a few tenths of ε over the whole run.
        value_discretization_interval=min(1e-3, max(1e-4, 1.0 / steps)),
    )
    return float(pld.self_compose(steps).get_epsilon_for_delta(delta))
