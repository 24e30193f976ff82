"""Why: batches that are shuffled or of fixed size are not Poisson samples, and accounting for them as such can miss ε by a
factor of 60. These are lower bounds on the true ε, by one bad data set and one test each: a claim below them is false.
Must not know plans.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_ndtr  # pyright: ignore[reportMissingTypeStubs]

from gradleak.privacy.accounting._roots import root

_THRESHOLDS = 4000


def shuffle_delta(epsilon: float, noise_multiplier: float, batches: int) -> float:
    """A lower bound on δ(ε) of one shuffled epoch of ``batches`` batches, relation zero-out.

    All other records contribute +1 along an axis that their batch position decides; the pair is then (1/T)Σ N(2e_t, z²I) against
    (1/T)Σ N(e_t, z²I), and the test "the largest coordinate exceeds c" gives

        δ ≥ max_c [1 - Φ((c-2)/z)·Φ(c/z)^{T-1}] - e^ε·[1 - Φ((c-1)/z)·Φ(c/z)^{T-1}].

    Args:
        epsilon: at least 0. noise_multiplier: z, positive. batches: T, at least 1.

    Source: Chua et al., arXiv 2403.17673, for the pair, as quoted in the project's notes.
    """
    z = noise_multiplier
    c = np.linspace(-2.0, 2.0 + z * (12.0 + math.sqrt(2 * math.log(batches)) + epsilon * z), _THRESHOLDS)
    others = (batches - 1) * log_ndtr(c / z)
    with_target = -np.expm1(log_ndtr((c - 2) / z) + others)
    without = -np.expm1(log_ndtr((c - 1) / z) + others)
    return max(0.0, float(np.max(with_target - math.exp(min(epsilon, 700.0)) * without)))


def shuffle_epsilon(noise_multiplier: float, batches: int, delta: float) -> float:
    """The ε below which one shuffled epoch is certainly not (ε, δ)-private; see ``shuffle_delta``."""
    if shuffle_delta(0.0, noise_multiplier, batches) <= delta:
        return 0.0
    high = 1.0
    while shuffle_delta(high, noise_multiplier, batches) > delta:
        high *= 2
        if high > 600:  # e^ε leaves the numbers; the bound is that good and no better.
            return 600.0
    return root(lambda e: shuffle_delta(e, noise_multiplier, batches) - delta, high / 2 if high > 1 else 0.0, high)


def fixed_size_epsilon(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """The ε below which training on fresh fixed-size batches is certainly not (ε, δ)-private, relation replace-one.

    All others contribute -1 and the target +1 or -1. After the constant is taken off, a step releases 2·[target drawn] + z·noise
    against z·noise: the Poisson pair at multiplier z/2. Rounded towards less privacy loss, so that it stays a lower bound.

    Source: Lebeda et al., arXiv 2405.20769, as quoted in the project's notes.
    """
    from dp_accounting.pld import privacy_loss_distribution

    pld = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier / 2,
        pessimistic_estimate=False,
        use_connect_dots=False,
        sampling_prob=rate,
        # Rounding down costs about a third of an interval in each step: a few tenths of ε over the whole run.
        value_discretization_interval=min(1e-3, max(1e-4, 1.0 / steps)),
    )
    return float(pld.self_compose(steps).get_epsilon_for_delta(delta))
