"""ε where the adversary knows who took part: a mean over the number of participations, not their mean number. Also the fallback for
every hidden coin: whoever is told the draws does no worse. Must not know plans.

Given the draws m_1 … m_T the releases are Gaussian with μ² = S = Σ_t (m_t·d/z_t)². The draws have the same law with and without the
unit, so the pair is (draws, release) and for every ε

    δ(ε) = E_S[δ_√S(ε)],   δ_μ the curve of the Gaussian mechanism.

Nothing is lost: that is the curve of the mechanism that releases the draws too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom  # pyright: ignore[reportMissingTypeStubs]

from gradleak.privacy.accounting import gaussian
from gradleak.privacy.plan.views import Release

Vector = NDArray[np.float64]
_NEGLIGIBLE = 1e-40
"""Probabilities below this are counted as a certain loss instead."""
_CELLS = 4096
"""Cells that a law of S is rounded up to after each convolution: at most 1/4096 of its range more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Energy:
    """The law of S: values with their probabilities; ``lost`` is probability that was cut off and counts as δ."""

    values: Vector
    weights: Vector
    lost: float = 0.0

    def log_delta(self, epsilon: float) -> float:
        """ln δ(ε) for ε ≥ 0."""
        logs = np.log(self.weights) + gaussian.log_deltas(np.sqrt(self.values), epsilon)
        return float(np.logaddexp(np.logaddexp.reduce(logs), math.log(self.lost) if self.lost > 0 else -math.inf))

    def delta(self, epsilon: float) -> float:
        """δ(ε) for any real ε: the pair is symmetric."""
        if epsilon >= 0:
            return min(1.0, math.exp(self.log_delta(epsilon)))
        return min(1.0, -math.expm1(epsilon) + math.exp(epsilon + self.log_delta(-epsilon)))

    def epsilon(self, delta: float) -> float:
        """The smallest ε with δ(ε) at most ``delta``, the upper end of the bisection."""
        target = math.log(delta)
        if self.log_delta(0.0) <= target:
            return 0.0
        if self.lost >= delta:
            return math.inf
        low, high = 0.0, gaussian.epsilon(1.0 / math.sqrt(float(self.values.max())), (delta - self.lost) / 2)
        if not math.isfinite(high):
            return math.inf
        for _ in range(100):
            middle = (low + high) / 2
            if middle in (low, high) or high - low <= 1e-13 * high:
                break
            low, high = (low, middle) if self.log_delta(middle) <= target else (middle, high)
        return high


def energy(release: Release) -> Energy:
    """The law of S of a release whose draws are known, whatever its own law hides.

    Cut batches count with twice the distance: whoever is in may push another out.
    """
    distance = max(release.distance, 2.0) if release.law == "cut" else release.distance
    laws = [_phase(release, distance / p.noise_multiplier, p.steps) for p in release.phases]
    total = laws[0]
    for law in laws[1:]:
        total = _sum(total, law)
    return total


def _phase(release: Release, reach: float, steps: int) -> Energy:
    """S of ``steps`` equal steps; ``reach`` is d/z."""
    if release.law == "full" or (release.rate == 1.0 and release.population is None):
        return Energy(values=np.array([steps * (release.draws * reach) ** 2]), weights=np.ones(1))
    if release.draws == 1:
        counts, weights, lost = _support(binom(steps, release.rate), steps)
        return Energy(values=counts * reach**2, weights=weights, lost=lost)
    law: Any
    if release.population is None:
        law = binom(release.draws, release.rate)
    else:
        law = hypergeom(release.population, release.draws, max(1, round(release.rate * release.population)))
    squares = np.zeros(release.draws**2 + 1)
    squares[np.arange(release.draws + 1) ** 2] = law.pmf(np.arange(release.draws + 1))
    total = _power(_trimmed(_Lattice(first=0, weights=squares)), steps)
    values: Vector = float(total.unit) * (total.first + np.arange(total.weights.size, dtype=np.float64)) * reach**2
    kept = total.weights > 0
    return Energy(values=values[kept], weights=total.weights[kept], lost=total.lost)


def _support(law: object, most: int) -> tuple[Vector, Vector, float]:
    counts = np.arange(most + 1)
    weights = law.pmf(counts)  # type: ignore[attr-defined]
    kept = weights > _NEGLIGIBLE
    return counts[kept].astype(float), weights[kept], float((~kept).sum()) * _NEGLIGIBLE if not kept.all() else 0.0


@dataclass(frozen=True, slots=True)
class _Lattice:
    """A law on whole multiples of ``unit``, from ``first`` on."""

    first: int
    weights: Vector
    unit: int = 1
    lost: float = 0.0


def _power(law: _Lattice, steps: int) -> _Lattice:
    """Sum of independent draws, by doubling."""
    total: _Lattice | None = None
    while steps:
        if steps & 1:
            total = law if total is None else _added(total, law)
        steps >>= 1
        if steps:
            law = _added(law, law)
    assert total is not None
    return total


def _added(first: _Lattice, second: _Lattice) -> _Lattice:
    unit = max(first.unit, second.unit)
    left, right = (_coarser(law, unit // law.unit) for law in (first, second))
    total = _trimmed(
        _Lattice(left.first + right.first, np.convolve(left.weights, right.weights), unit, left.lost + right.lost)
    )
    return total if total.weights.size <= 2 * _CELLS else _coarser(total, 2)


def _coarser(law: _Lattice, factor: int) -> _Lattice:
    """Rounded up to multiples of ``factor`` units."""
    if factor == 1:
        return law
    places = -(-(law.first + np.arange(law.weights.size)) // factor)
    weights: Vector = np.bincount(places - places[0], law.weights).astype(np.float64)
    return _Lattice(int(places[0]), weights, law.unit * factor, law.lost)


def _trimmed(law: _Lattice) -> _Lattice:
    kept = law.weights > _NEGLIGIBLE
    ends = np.flatnonzero(kept)
    lost = law.lost + float((~kept).sum()) * _NEGLIGIBLE
    weights = np.where(kept, law.weights, 0.0)[ends[0] : ends[-1] + 1]
    return _Lattice(law.first + int(ends[0]), weights, law.unit, lost)


def _sum(first: Energy, second: Energy) -> Energy:
    """Law of the sum of two independent parts, values rounded up to a grid."""
    values = (first.values[:, None] + second.values[None, :]).ravel()
    weights = (first.weights[:, None] * second.weights[None, :]).ravel()
    kept = weights > _NEGLIGIBLE
    lost = first.lost + second.lost + float((~kept).sum()) * _NEGLIGIBLE
    values, weights = values[kept], weights[kept]
    if values.size > _CELLS:
        low, high = float(values.min()), float(values.max())
        cell = (high - low) / (_CELLS // 2) or 1.0
        places = np.ceil((values - low) / cell - 1e-12).astype(int)
        weights = np.bincount(places, weights).astype(np.float64)
        values = low + cell * np.arange(weights.size, dtype=np.float64)
        values, weights = values[weights > 0], weights[weights > 0]
    return Energy(values=values, weights=weights, lost=lost)


def total_draws(release: Release, tail: float) -> int:
    """The number of participations, over all steps, that is exceeded with probability at most ``tail``; for Laplace noise."""
    if release.law == "full" or (release.rate == 1.0 and release.population is None):
        return release.steps * release.draws
    if release.population is not None:
        return release.steps * release.draws
    law = binom(release.steps * release.draws, release.rate)
    count = int(law.isf(tail))
    while law.sf(count) > tail:
        count += 1
    return min(count, release.steps * release.draws)
