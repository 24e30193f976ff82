"""Privacy loss distributions: dp-accounting's where it has the event, and ones made from a bound on the privacy curve of one step
where it has not. Always rounded upward. Must not know plans.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gradleak.privacy.accounting import mixtures, reconstruction
from gradleak.privacy.accounting.events import describe, neighboring, reduced
from gradleak.privacy.plan.plan import Phase
from gradleak.privacy.plan.views import Release

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf

Functions = tuple[Callable[[float], float], Callable[[float], float]]

LEAST_DELTA = 1e-11
"""Below this δ a loss distribution says nothing here: truncated tails and the rounding of Fourier transforms, up to about 1e-13 in
δ, would decide. Rényi accounting and exact curves take over."""
_ROUNDING = 1e-13
_HOPELESS = 1e4
"""Where one step alone can lose so much, the loss would be cut into millions of pieces for an ε that promises nothing."""
_MOST_PIECES = 400_000
_COARSE = np.concatenate([np.linspace(-20.0, 20.0, 41), np.geomspace(21.0, 700.0, 40)])
_ZOOMS, _PIECES = 4, 9
"""ε is searched on 81 points, then four times on 9 points between the neighbors of the best: to 1e-4 of the first spacing."""
_TAIL = 1e-18


def curve_functions(release: Release, guess: Callable[[], float]) -> Functions | None:
    """δ ↦ ε and κ ↦ γ(κ) of the composed loss distribution; None where there is none.

    Args:
        guess: a rough ε of the release, to choose how finely the privacy loss is cut.
    """
    if _largest_loss(release) > _HOPELESS:
        return None
    own = release.law in ("fixed", "fixed_exchange", "binomial")
    rounded = _from_mixtures(release, interval(guess())) if own else _from_event(release, guess)
    if rounded is None:
        return None
    epsilon_for, delta_for = rounded

    def epsilon(delta: float) -> float:
        return math.inf if delta < LEAST_DELTA else float(epsilon_for(delta - _ROUNDING))

    def delta(epsilon: float) -> float:
        return float(delta_for(epsilon)) + _ROUNDING

    return lru_cache(maxsize=256)(epsilon), lambda kappa: least_success(delta, kappa)


def least_success(delta: Callable[[float], float], kappa: float) -> float:
    """min over ε of e^ε·κ + δ(ε), which is convex in e^ε: it lies between the neighbors of the best point of a grid."""
    grid, least = _COARSE, 1.0
    for _ in range(_ZOOMS + 1):
        values = [reconstruction.from_curve(kappa, [e], [min(1.0, delta(float(e)))]) for e in grid]
        best = int(np.argmin(values))
        least = min(least, values[best])
        grid = np.linspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], _PIECES)
    return least


def interval(epsilon: float) -> float:
    """Width of the pieces of privacy loss. The cost is their number, ε over the width; what rounding up adds grows with the steps
    and the square of the width, so a large ε, which needs many steps, gets pieces that are finer in proportion.
    """
    return min(1e-2, max(2e-6, min(6e-5 * epsilon, 1e-3), 3e-6 * epsilon))


def orders(release: Release, phase: Phase) -> tuple[mixtures.Order, ...]:
    """Bounds on the curves of one step, for each order of the neighbors; none for a law that is no mixture on a line."""
    q, d, z = release.rate, release.distance, phase.noise_multiplier
    if release.law == "poisson":
        return mixtures.presence(q, d, z)
    if release.law == "poisson_exchange":
        return mixtures.exchange(q, d, z)
    if release.law == "binomial":
        return mixtures.binomial(release.draws, q, d, z)
    if release.law in ("fixed", "fixed_exchange"):
        return mixtures.fixed_pairs(q, d, z, exchanged=release.law == "fixed_exchange")
    return ()


def _from_event(release: Release, guess: Callable[[], float]) -> Functions | None:
    event = describe(release, "pld")
    if event is None:
        return None
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(neighboring(release), interval(guess())).compose(event)
    return accountant.get_epsilon, accountant.get_delta


def _from_mixtures(release: Release, width: float) -> Functions:
    """By connecting the dots of the curve of one step (Doroshenko et al., arXiv 2207.04380), for each order of the neighbors."""
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    steps = [(phase, orders(release, phase)) for phase in reduced(release.phases)]
    spans = [(-_reach(order.below), _reach(order.above)) for _, both in steps for order in both]
    width *= max(1, math.ceil(max(high - low for low, high in spans) / width / _MOST_PIECES))
    total: Any = None
    for phase, both in steps:
        parts = [_pieces(order, width) for order in both]
        # A moment generating function that overflows bounds nothing, and the bound on the truncation is the least over all orders.
        with np.errstate(over="ignore"):
            distribution = PrivacyLossDistribution(*parts).self_compose(phase.steps)
        total = distribution if total is None else total.compose(distribution)
    return total.get_epsilon_for_delta, total.get_delta_for_epsilon


def _pieces(order: mixtures.Order, width: float) -> PLDPmf:
    """The loss distribution with the curve of ``order`` at multiples of ``width``, and straight lines in e^ε between."""
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap

    low, high = -_reach(order.below), _reach(order.above)
    first, last = math.floor(low / width), math.ceil(high / width)
    values = order.curve(width * np.arange(first, last + 1, dtype=np.float64))
    # The true curve falls; what rounding lifts again is lifted everywhere before it.
    values = np.maximum.accumulate(values[::-1])[::-1]
    return create_pmf_pessimistic_connect_dots_fixed_gap(width, first, last, values)


def _reach(pair: mixtures.Pair) -> float:
    """An ε beyond which hardly any probability is lost."""
    high = 1.0
    while float(pair.curve(np.array([high]))[0]) > _TAIL and high < _HOPELESS:
        high *= 1.5
    return high


def _largest_loss(release: Release) -> float:
    """The privacy loss of one step ten standard deviations out: d²/2 + 10·d at distance d in units of the noise."""
    if release.mechanism == "laplace":
        return 0.0
    d = release.distance * release.draws / min(p.noise_multiplier for p in release.phases)
    return d * d / 2 + 10 * d
