"""The small core of formulas that need no library beyond scipy: exact where an equation is known, otherwise named for
what they are. They cross-check dp-accounting, and dp-accounting checks them. Must not know plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import integrate, optimize, special  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting import gaussian

ORDERS = tuple(1 + 2.0 ** (i / 4) for i in range(-16, 33))
"""Rényi orders from 1.06 to 257, evenly on a logarithmic scale."""


def root(function: Callable[[float], float], low: float, high: float, *, tolerance: float = 1e-12) -> float:
    """An x in [low, high] with function(x) = 0; the signs at the two ends must differ."""
    return float(optimize.brentq(function, low, high, xtol=tolerance))  # pyright: ignore[reportArgumentType]


def composed_mu(releases: list[tuple[float, int]]) -> float:
    """μ of Gaussian releases: √(Σ n/z²). Composition of Gaussian differential privacy is exact.

    Args:
        releases: pairs (noise multiplier z, number n).
    """
    return math.inf if any(z == 0 for z, _ in releases) else math.sqrt(sum(n / z / z for z, n in releases))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε of a μ-Gaussian private release, exact; see ``gaussian.epsilon``."""
    return 0.0 if mu == 0 else gaussian.epsilon(1.0 / mu, delta)


def gaussian_multiplier(epsilon: float, delta: float) -> float:
    """The smallest noise multiplier at which one Gaussian release is (ε, δ)-private.

    Args:
        epsilon: positive. delta: in (0, 1).

    Raises:
        UsageError: for an argument out of range.
    """
    if not epsilon > 0 or math.isinf(epsilon):
        raise UsageError(f"epsilon={epsilon} is out of range. epsilon must be positive and finite.")
    low, high = 1e-9, 1.0
    while gaussian.epsilon(high, delta) > epsilon:
        low, high = high, 2 * high
    z = math.exp(root(lambda x: gaussian.epsilon(math.exp(x), delta) - epsilon, math.log(low), math.log(high)))
    while gaussian.epsilon(z, delta) > epsilon:
        z *= 1 + 1e-12
    return z


def zcdp_epsilon(rho: float, delta: float) -> float:
    """ε of a ρ-zCDP release by the textbook conversion ρ + 2√(ρ ln(1/δ)); looser than the exact curve of a Gaussian.

    Source: Bun and Steinke, arXiv 1605.02065.
    """
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def renyi_epsilon(orders: tuple[float, ...], divergences: tuple[float, ...], delta: float) -> float:
    """The best ε over Rényi orders: ε_α + ln((α-1)/α) - (ln δ + ln α)/(α-1), at least 0."""
    epsilons = (
        e + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a, e in zip(orders, divergences, strict=True)
    )
    return max(0.0, min(epsilons))


def poisson_gaussian_divergence(order: float, rate: float, noise_multiplier: float) -> float:
    """Rényi divergence of one Poisson-subsampled Gaussian release, add-or-remove.

        ε_α = ln E_{x~N(0,z²)}[((1-q) + q·e^{(2x-1)/(2z²)})^α] / (α-1)

    For whole orders the power expands to Σ_k C(α,k)·(1-q)^{α-k}·q^k·e^{(k²-k)/(2z²)}; for others the integral is taken.

    Args:
        order: α, above 1. rate: q in [0, 1]. noise_multiplier: z, positive.

    Source: Mironov, Talwar and Zhang, arXiv 1908.10530, for the pair (this direction is the larger one).
    Deviations: exact for orders that are not whole, where dp-accounting bounds from above (3 % more at α = 1.5).
    """
    if rate == 0:
        return 0.0
    if rate == 1:
        return order / (2 * noise_multiplier**2)
    moment = _whole if float(order).is_integer() else _fractional
    return moment(order, rate, noise_multiplier) / (order - 1)


def classical_epsilon(noise_multiplier: float, delta: float) -> float:
    """√(2 ln(1.25/δ))/z: what the classical calibration would claim. Proven for ε ≤ 1 only; never a guarantee here."""
    return math.inf if noise_multiplier == 0 else math.sqrt(2 * math.log(1.25 / delta)) / noise_multiplier


def central_limit_epsilon(releases: list[tuple[float, int]], rate: float, delta: float) -> float:
    """What accounting by the central limit of Gaussian differential privacy would claim; it can be far too low.

        μ = q·√(Σ n·(e^{1/z²} - 1))

    Source: Bu et al., arXiv 1911.11607, as quoted in the project's notes.
    """
    if any(1 / z**2 > 700 for z, _ in releases if z) or any(z == 0 for z, _ in releases):
        return math.inf
    return gaussian_epsilon(rate * math.sqrt(sum(n * math.expm1(1 / z**2) for z, n in releases)), delta)


def leaked_bits(releases: list[tuple[float, int]], rate: float) -> float:
    """A bound on the mutual information of the unit's gradient with everything released, in bits, for any prior and any model.

        I ≤ Σ_t q/(2·z_t²·ln 2)

    A vector of norm at most C in noise z·C per coordinate: ½ Σ log₂(1 + λ_i/z²) ≤ tr Cov/(2z²·ln 2) with tr Cov ≤ 1 in units of
    C. Steps add up by the chain rule, and knowing which steps used the unit only adds to it, which gives the factor q.

    Args:
        releases: pairs (noise multiplier z, number of steps). rate: q, the expected share of steps that use the unit.
    """
    return (
        math.inf if any(z == 0 for z, _ in releases) else sum(rate * n / (2 * z * z * math.log(2)) for z, n in releases)
    )


def _whole(order: float, rate: float, z: float) -> float:
    k = np.arange(int(order) + 1)
    terms = (
        special.gammaln(order + 1)
        - special.gammaln(k + 1)
        - special.gammaln(order - k + 1)
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + (k * k - k) / (2 * z * z)
    )
    return float(np.logaddexp.reduce(terms))


def _fractional(order: float, rate: float, z: float) -> float:
    def log_integrand(x: float) -> float:
        lifted = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * z * z))
        return order * float(lifted) - x * x / (2 * z * z) - math.log(z * math.sqrt(2 * math.pi))

    # Two bumps: around 0, where the record was not drawn, and around α, where it was every time.
    points = sorted({0.0, order})
    low, high = -12 * z, order + 12 * z
    grid = np.linspace(low, high, 400)
    peak = max(log_integrand(float(x)) for x in grid)
    total, _ = integrate.quad(
        lambda x: math.exp(log_integrand(x) - peak), low, high, points=points, limit=400, epsabs=0, epsrel=1e-11
    )
    return peak + math.log(total)
