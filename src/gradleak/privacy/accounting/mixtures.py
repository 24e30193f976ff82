"""One sampled step with Gaussian noise is a pair of mixtures of Gaussians on a line. Their privacy curve and Rényi divergences, and
the proof of which pairs are the worst. Must not know plans: numbers in, numbers out.

All means and the noise are in units of C. H_ε(P‖Q) = sup_E P(E) - e^ε·Q(E). Other records' draws are given to the adversary, which
only helps (joint convexity), and subtracted.

**Exchange under Poisson sampling.** P = (1-q)·N(0) + q·N(g), Q = (1-q)·N(0) + q·N(h), |g|, |h| ≤ 1. The best set E is
{⟨x, g⟩ > A(⟨x, h⟩)} with A increasing, slope at most 1. Turn h away from g in their plane: E is closed upward along the side of h
that faces g, so Q(E) falls while P(E) and the rest stay; by the envelope theorem H grows until h = -c·g. On one line E is a half
line, and moving g up or h down moves H up. So g = 1, h = -1.

**Fixed batches.** A batch that holds the unit differs from one that does not by one other record h, |h| ≤ 1:
P = (1-q)·N(h) + q·N(g), Q = (1-q)·N(h) + q·N(g').

- *Exchange*, |g'| ≤ 1: H = sup_E q·P_g(E) - e^ε·q·P_g'(E) - (e^ε-1)(1-q)·P_h(E) for ε ≥ 0. A set with P_g(E) = p has
  P_g'(E) ≥ Φ(Φ⁻¹(p) - |g-g'|/z) ≥ Φ(Φ⁻¹(p) - 2/z), likewise P_h(E), and a half line with g = 1, g' = h = -1 reaches both. So H is at
  most that of (1-q)·N(0) + q·N(2) against N(0), and the order Q, P has the same bound.
- *Zero-out*, g' = 0, order P, Q: as for the exchange under Poisson sampling h is turned away from g and both grow: h = -1, g = 1, that
  is (1-q)·N(0) + q·N(2) against (1-q)·N(0) + q·N(1). Order Q, P: sup_E q·P_0(E) - e^ε·q·P_g(E) - (e^ε-1)(1-q)·P_h(E); a set
  with P_0(E) = p has P_g(E), P_h(E) ≥ Φ(Φ⁻¹(p) - 1/z), reached by one half line with g = h = 1: the Poisson pair
  (1-q)·N(0) + q·N(1) against N(0).

For ε < 0, H_ε(P‖Q) = 1 - e^ε + e^ε·H_{-ε}(Q‖P), so the curve of one order is that of two pairs, one for each sign. A curve that
bounds that of every step bounds the composition (the pair with that curve dominates; Blackwell).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

Vector = NDArray[np.float64]
_THRESHOLDS = 60_001
"""Points of the line where the loss is computed; the place of a given loss is interpolated."""
_MOST_POINTS = 120_000
"""Points of one integral; where noise is so small that more are needed, sampling hides nearly nothing."""
ORDERS = tuple(1 + 2.0 ** (i / 3) for i in range(-9, 28))
"""Rényi orders from 1.1 to 407."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Σ w_i N(m_i, z²); weights above 0."""

    weights: tuple[float, ...]
    means: tuple[float, ...]

    def log_density(self, x: Vector, z: float) -> Vector:
        """Up to the constant that all mixtures with this z share."""
        weights, means = np.array(self.weights), np.array(self.means)
        return np.logaddexp.reduce(np.log(weights) - ((x[..., None] - means) / z) ** 2 / 2, axis=-1)

    def tail(self, x: Vector, z: float) -> Vector:
        """P(X > x)."""
        return ndtr((np.array(self.means) - x[..., None]) / z) @ np.array(self.weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """P against Q at noise z, where {P > e^ε·Q} is a half line for every ε ≥ 0."""

    upper: Mixture
    lower: Mixture
    noise: float

    def curve(self, epsilons: Vector) -> Vector:
        """H_ε(P‖Q) for ε ≥ 0.

        The best set {x > x*} has loss ε at x*; H is stationary there, so an x* that is off by t costs only t².
        """
        means = (*self.upper.means, *self.lower.means)
        span = max(means) - min(means)
        # Far out the loss grows by the distance of the two largest means over z² per unit, or settles.
        gap = max(self.upper.means) - max(self.lower.means) or span
        top = float(epsilons.max(initial=0.0))
        reach = min((top + 80.0 + (span / self.noise) ** 2) * self.noise**2 / gap, 60 * self.noise + span)
        x = np.linspace(min(means) - 40 * self.noise, max(means) + reach, _THRESHOLDS)
        loss = self.loss(x)
        start = int(loss.argmin())
        high = np.interp(epsilons, np.maximum.accumulate(loss[start:]), x[start:])
        chance, other = self.upper.tail(high, self.noise), self.lower.tail(high, self.noise)
        with np.errstate(over="ignore", invalid="ignore"):
            values = chance - np.exp(np.minimum(epsilons, 700.0)) * other
        # Never above P(X > x); where e^ε leaves the numbers that is the bound.
        return np.clip(np.where(np.isfinite(values) & (epsilons < 700.0), values, chance), 0.0, 1.0)

    def loss(self, x: Vector) -> Vector:
        return self.upper.log_density(x, self.noise) - self.lower.log_density(x, self.noise)

    def log_moment(self, order: float, *, reverse: bool = False) -> float:
        """ln E_Q[(P/Q)^α], or with P and Q exchanged; infinite where the integral would take too many points."""
        first, second = (self.lower, self.upper) if reverse else (self.upper, self.lower)
        z = self.noise
        reach = [order * a - (order - 1) * b for a in first.means for b in second.means]
        low, high = min(reach) - 14 * z, max(reach) + 14 * z
        means = (*first.means, *second.means)
        # The integrand is analytic up to π·z²/d from the line: the trapezoidal rule errs by e^-40 and less.
        step = min(z / 4, z * z / max(max(means) - min(means), 1e-9) / 2)
        count = math.ceil((high - low) / step) + 1
        if count > _MOST_POINTS:
            return math.inf
        x = np.linspace(low, high, count)
        exponent = order * first.log_density(x, z) - (order - 1) * second.log_density(x, z)
        width = (high - low) / (count - 1)
        return float(np.logaddexp.reduce(exponent)) + math.log(width / (z * math.sqrt(2 * math.pi)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One order of two neighbors: ``above`` bounds H_ε for ε ≥ 0, ``below`` the reversed order, and so H_ε for ε < 0.

    ``one_pair``: both are halves of the curve of the pair ``above``, which then says all.
    """

    above: Pair
    below: Pair
    one_pair: bool

    def curve(self, epsilons: Vector) -> Vector:
        """A bound on H_ε for every real ε."""
        positive = self.above.curve(np.maximum(epsilons, 0.0))
        negative = -np.expm1(np.minimum(epsilons, 0.0)) + np.exp(np.minimum(epsilons, 0.0)) * self.below.curve(
            np.maximum(-epsilons, 0.0)
        )
        return np.where(epsilons >= 0, positive, np.minimum(negative, 1.0))

    def renyi(self, order: float) -> float:
        """A bound on the Rényi divergence of one step.

        E[(P/Q)^α] = 1 + α(α-1)·∫ e^{(α-1)ε}·(H_ε - (1-e^ε)₊) dε, an integral over two half lines, each at most the whole integral of
        its own pair.
        """
        if self.one_pair:
            return self._of(self.above.log_moment(order), order)
        first, second = self.above.log_moment(order), self.below.log_moment(order, reverse=True)
        total = np.logaddexp(first, second)
        return self._of(float(total + math.log1p(-math.exp(-total))) if total > 0 else 0.0, order)

    @staticmethod
    def _of(log_moment: float, order: float) -> float:
        return max(0.0, log_moment) / (order - 1)


def presence(rate: float, distance: float, noise: float) -> tuple[Order, Order]:
    """Present or absent under a hidden coin; both orders."""
    with_unit = _two(rate, distance)
    pair = Pair(upper=with_unit, lower=_at(0.0), noise=noise)
    # Mirrored: N(0) against the mixture is a half line as well, x → -x.
    other = Pair(upper=_at(0.0), lower=_two(rate, -distance), noise=noise)
    return Order(above=pair, below=other, one_pair=True), Order(above=other, below=pair, one_pair=True)


def exchange(rate: float, distance: float, noise: float) -> tuple[Order]:
    """One contribution or another under a hidden coin, ``distance`` apart at most; symmetric."""
    pair = Pair(upper=_two(rate, distance / 2), lower=_two(rate, -distance / 2), noise=noise)
    return (Order(above=pair, below=pair, one_pair=True),)


def fixed_pairs(rate: float, distance: float, noise: float, *, exchanged: bool) -> tuple[Order, ...]:
    """Batches of fixed size: another record stands in where the unit is not drawn. See the module."""
    first = Pair(upper=_two(rate, distance), lower=_at(0.0), noise=noise)
    if exchanged:
        return (Order(above=first, below=first, one_pair=False),)
    opposite = Pair(upper=_two(rate, 2 * distance), lower=_two(rate, distance), noise=noise)
    return Order(above=opposite, below=first, one_pair=False), Order(above=first, below=opposite, one_pair=False)


def binomial(draws: int, rate: float, distance: float, noise: float) -> tuple[Order, Order]:
    """k records with a hidden coin each against none of them; both orders."""
    logs = [
        math.lgamma(draws + 1)
        - math.lgamma(m + 1)
        - math.lgamma(draws - m + 1)
        + m * math.log(rate)
        + (draws - m) * math.log1p(-rate)
        for m in range(draws + 1)
    ]
    kept = [m for m in range(draws + 1) if logs[m] > -700]
    weights = tuple(math.exp(logs[m]) for m in kept)
    up = Pair(upper=Mixture(weights=weights, means=tuple(m * distance for m in kept)), lower=_at(0.0), noise=noise)
    down = Pair(upper=_at(0.0), lower=Mixture(weights=weights, means=tuple(-m * distance for m in kept)), noise=noise)
    return Order(above=up, below=down, one_pair=True), Order(above=down, below=up, one_pair=True)


def _at(mean: float) -> Mixture:
    return Mixture(weights=(1.0,), means=(mean,))


def _two(rate: float, distance: float) -> Mixture:
    return _at(distance) if rate == 1.0 else Mixture(weights=(1 - rate, rate), means=(0.0, distance))
