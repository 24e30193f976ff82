"""The exact privacy curve of one Gaussian release, so that no bound is quoted where an equation is known.
Must not know channels: it takes numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError

_BISECTIONS = 200


def delta(noise_multiplier: float, epsilon: float) -> float:
    """The smallest δ for which one release of the Gaussian mechanism is (ε, δ)-differentially private.

        δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ),   μ = 1 / noise_multiplier

    Args:
        noise_multiplier: standard deviation of the noise in units of the sensitivity, positive.
        epsilon: at least 0.

    Returns:
        δ in [0, 1]; 0 where it is smaller than the smallest number.

    Raises:
        UsageError: for an argument out of range.

    Source: Balle and Wang, arXiv 1805.06530, equation 6.
    """
    _check(noise_multiplier > 0 and math.isfinite(noise_multiplier), "noise_multiplier", noise_multiplier, "positive")
    _check(epsilon >= 0, "epsilon", epsilon, "at least 0")
    return math.exp(_log_delta(1.0 / noise_multiplier, epsilon))


def epsilon(noise_multiplier: float, delta: float) -> float:
    """The smallest ε for which one release of the Gaussian mechanism is (ε, δ)-differentially private.

    Args:
        noise_multiplier: standard deviation of the noise in units of the sensitivity, at least 0.
        delta: in (0, 1).

    Returns:
        ε, at least 0; infinite without noise. Never below the true value: the upper end of the bisection is returned.

    Raises:
        UsageError: for an argument out of range.
    """
    _check(noise_multiplier >= 0, "noise_multiplier", noise_multiplier, "at least 0")
    _check(0.0 < delta < 1.0, "delta", delta, "between 0 and 1")
    if noise_multiplier == 0.0 or math.isinf(1.0 / noise_multiplier):
        return math.inf
    mu, target = 1.0 / noise_multiplier, math.log(delta)
    if _log_delta(mu, 0.0) <= target:
        return 0.0
    # δ(ε) ≤ Φ(μ/2 - ε/μ) ≤ exp(-x²/2) at ε = μ²/2 + μx, x > 0: an ε that is surely enough.
    low, high = 0.0, mu * mu / 2.0 + mu * math.sqrt(-2.0 * target)
    if math.isinf(high):
        return math.inf
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (low, middle) if _log_delta(mu, middle) <= target else (middle, high)
    return high


def _log_delta(mu: float, epsilon: float) -> float:
    """log δ(ε), stable for every μ: the two terms of δ can each underflow while their difference matters."""
    near, far = epsilon / mu - mu / 2.0, epsilon / mu + mu / 2.0
    if near > 0.0:
        # e^ε φ(far) = φ(near), so δ = φ(near)·(R(near) - R(far)) with Mills' ratio R(x) = Φ(-x)/φ(x).
        difference = float(erfcx(near / math.sqrt(2.0)) - erfcx(far / math.sqrt(2.0)))
        return -near * near / 2.0 + math.log(difference / 2.0) if difference > 0.0 else -math.inf
    first, second = float(log_ndtr(-near)), epsilon + float(log_ndtr(-far))
    return first + math.log(-math.expm1(second - first)) if second < first else -math.inf


def log_deltas(mu: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """log δ(ε) at each μ; -∞ where δ is 0, as for μ = 0. The same equation as ``delta``, for many releases at once.

    Args:
        mu: at least 0. epsilon: at least 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = epsilon / mu - mu / 2.0, epsilon / mu + mu / 2.0
        difference = erfcx(near / math.sqrt(2.0)) - erfcx(far / math.sqrt(2.0))
        tail = -near * near / 2.0 + np.log(np.maximum(difference, 0.0) / 2.0)
        first, second = log_ndtr(-near), epsilon + log_ndtr(-far)
        plain = first + np.log(-np.expm1(np.minimum(second - first, 0.0)))
    return np.where(mu > 0, np.where(near > 0.0, tail, plain), -np.inf)


def _check(holds: bool, name: str, value: float, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{name}={value} is out of range. {name} must be {wanted}.")
