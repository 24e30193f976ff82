"""Why: a bound for every attacker that uses how close *these* candidates lie to each other; the mechanism's bound must
assume that they lie as far apart as the clip allows. Not a differential-privacy statement: the number depends on the
data and is for internal use. Must not know models.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar  # pyright: ignore[reportMissingTypeStubs]
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy.bounds.candidates import Candidates, Matrix

_SMALLEST = 1e-9
"""Distances are raised to this: a bound may grow by rounding, and a division by zero is spared."""
_CLUSTERS = (1, 2, 4, 8, 16, 32)
_ROUNDS = 10


def bound(candidates: Candidates, noise_multiplier: float) -> float:
    """Instance reconstruction robustness: a cap on the success of any attacker with this list and prior.

        success ≤ max { Σ_k π_k Φ(Φ⁻¹(κ_k) + a_k) : 0 ≤ κ_k ≤ 1, Σ_k w_k κ_k ≤ 1 },    a_k = |g_k - c_k| / (z C)

    Take Q = Σ_m w_m N(c_m, z²I), a law that does not depend on the record, and give every candidate to one center m. An
    attacker names k on the event E_k; the events are disjoint, so the Q(E_k) sum to at most 1. Q(E_k) is at least w_m
    times the probability κ_k of E_k under N(c_m, z²I), and by Neyman and Pearson P_k(E_k) ≤ Φ(Φ⁻¹(κ_k) + a_k).
    The maximum is at κ_k = Φ(-(ln(λ w_k/π_k) + a_k²/2) / a_k) with one λ for all k. What is returned is the Lagrange dual
    at that λ, which is an upper bound at *any* λ: rounding of the root cannot spoil it.

    Several choices of centers are tried, and the smallest bound holds, since all do: zero, the prior's mean gradient, and
    the means of up to 32 clusters. Zero makes it at most the mechanism's bound Φ(Φ⁻¹(max π) + 1/z), by concavity; clusters
    help where candidates fall into groups, such as labels, that the release tells apart and that are tight in themselves.

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
    prior, ones = candidates.prior, np.ones(candidates.count)
    found = [_dual(prior, ones, candidates.radii() / noise_multiplier)]
    for amount in _CLUSTERS:
        if amount < candidates.count or amount == 1:
            weights, radii = _clustered(candidates, amount)
            found.append(_dual(prior, weights, radii / noise_multiplier))
    return min(found)


def _clustered(candidates: Candidates, amount: int) -> tuple[Matrix, Matrix]:
    """Lloyd's rounds from centers that are far from each other, in inner products alone.

    Returns:
        For every candidate the prior weight of its cluster, and its distance to the cluster's mean.
    """
    gram, prior = candidates.gram, candidates.prior
    norms = gram.diagonal()
    squares = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)
    seeds = [int(prior.argmax())]
    while len(seeds) < amount:
        seeds.append(int(squares[:, seeds].min(1).argmax()))
    owner = squares[:, seeds].argmin(1)
    for _ in range(_ROUNDS):
        distances, _ = _to_means(gram, prior, owner)
        moved = distances.argmin(1)
        if (moved == owner).all():
            break
        # A cluster that lost all its members is gone; the others are numbered anew.
        owner = np.unique(moved, return_inverse=True)[1]
    distances, masses = _to_means(gram, prior, owner)
    return masses[owner], np.sqrt(distances[np.arange(owner.size), owner])


def _to_means(gram: Matrix, prior: Matrix, owner: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
    """Squared distances of all candidates to the prior-weighted means of all clusters ``[K M]``, and their masses."""
    member = (owner[:, None] == np.arange(owner.max() + 1)) * prior[:, None]
    masses = member.sum(0)
    mixing = member / masses
    toward = gram @ mixing
    squares = gram.diagonal()[:, None] - 2 * toward + (mixing * toward).sum(0)
    return np.maximum(squares, 0.0), masses


def _dual(prior: Matrix, weights: Matrix, shifts: Matrix) -> float:
    a = np.maximum(shifts, _SMALLEST)
    worth = np.log(prior) - np.log(weights) - a * a / 2

    def quantiles(log_price: float) -> Matrix:
        return (worth - log_price) / a

    def excess(log_price: float) -> float:
        return float((weights * ndtr(quantiles(log_price))).sum()) - 1.0

    # At the one end every κ_k is 1 and the sum at least 1, at the other every κ_k is 0.
    low, high = float((worth - 40 * a).min()), float((worth + 40 * a).max())
    if excess(low) <= 0.0:
        return 1.0
    log_price = float(root_scalar(excess, bracket=(low, high), method="brentq", xtol=1e-13, maxiter=500).root)
    value = float((prior * ndtr(quantiles(log_price) + a)).sum()) - math.exp(log_price) * excess(log_price)
    return min(1.0, value)
