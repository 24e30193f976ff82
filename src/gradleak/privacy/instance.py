"""Why: a bound for every attacker that uses how close *these* candidates lie to each other; the mechanism's bound must
assume that they lie as far apart as the clip allows. Not a differential-privacy statement: the number depends on the
data and is for internal use. Must not know models.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import root_scalar  # pyright: ignore[reportMissingTypeStubs]
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy.candidates import Candidates, Matrix

_SMALLEST = 1e-9
"""Distances are raised to this: a bound may grow by rounding, and a division by zero is spared."""


def bound(candidates: Candidates, noise_multiplier: float) -> float:
    """Instance reconstruction robustness: a cap on the success of any attacker with this list and prior.

        success ≤ max { Σ_k π_k Φ(Φ⁻¹(κ_k) + a_k) : κ_k ≥ 0, Σ_k κ_k ≤ 1 },    a_k = |g_k - c| / (z C)

    Take Q = N(c, z²I), a law that does not depend on the record. An attacker names k on the event E_k; the events are
    disjoint, so their Q-probabilities κ_k sum to at most 1, and by Neyman and Pearson P_k(E_k) ≤ Φ(Φ⁻¹(κ_k) + a_k).
    The maximum is at κ_k = Φ(-(ln(λ/π_k) + a_k²/2) / a_k) with one λ for all k. What is returned is the Lagrange dual at
    that λ, which is an upper bound at *any* λ: rounding of the root cannot spoil it.

    Two centers are tried, the prior's mean gradient and zero; the smaller bound holds, since both do. Zero makes it at
    most the mechanism's bound Φ(Φ⁻¹(max π) + 1/z), by concavity.

    Args:
        candidates: list, prior and Gram matrix.
        noise_multiplier: z, positive; z / √T for T releases of the same gradient.

    Raises:
        UsageError: if the noise multiplier is not positive.

    Source: own derivation, after the reconstruction robustness of Balle, Cherubin and Hayes, arXiv 2201.04845.
    """
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise UsageError(f"noise_multiplier={noise_multiplier} is out of range. It must be positive.")
    if candidates.count == 1:
        return 1.0
    centers = (candidates.radii(candidates.prior), candidates.radii())
    return min(_dual(candidates.prior, radii / noise_multiplier) for radii in centers)


def _dual(prior: Matrix, shifts: Matrix) -> float:
    a = np.maximum(shifts, _SMALLEST)

    def quantiles(log_price: float) -> Matrix:
        return -(log_price - np.log(prior) + a * a / 2) / a

    def excess(log_price: float) -> float:
        return float(ndtr(quantiles(log_price)).sum()) - 1.0

    # Φ(q_k) ≥ 1/2 for one k makes the sum large, every Φ(q_k) < 1/K makes it small: both ends are safe.
    low = float((np.log(prior) - a * a / 2 - 40 * a).min())
    high = float((np.log(prior) - a * a / 2 + 40 * a).max())
    log_price = float(root_scalar(excess, bracket=(low, high), method="brentq", xtol=1e-13, maxiter=500).root)
    q = quantiles(log_price)
    value = float((prior * ndtr(q + a)).sum()) - math.exp(log_price) * excess(log_price)
    return min(1.0, value)
