"""Why: an audit of a whole training run cannot repeat it a thousand times. Many independent canaries in one run, each in or
out by a coin, and guesses about them, give a bound from a single run. Pure functions of counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.optimize import root_scalar  # pyright: ignore[reportMissingTypeStubs]
from scipy.special import expit, ndtr, ndtri  # pyright: ignore[reportMissingTypeStubs]
from scipy.stats import binom  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting import gaussian

_TOLERANCE = 1e-7
_LARGEST = 512.0


def p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """How likely so many correct guesses are, at most, if the run is (ε, δ)-private.

        p = β + 2 m δ max_i (P(B ≥ v - i) - β) / i,   B ~ Bin(r, e^ε/(1+e^ε)),   β = P(B ≥ v)

    Args:
        correct: v, of ``guesses`` r, about ``canaries`` m ≥ r; on the others the auditor abstained.
        epsilon: at least 0; delta: in [0, 1).

    Raises:
        UsageError: for counts that cannot be or a number out of range.

    Source: Steinke, Nasr and Jagielski, arXiv 2305.08846.
    """
    _check(correct, guesses, canaries, delta)
    if not epsilon >= 0:
        raise UsageError(f"epsilon={epsilon} is out of range. It must be at least 0.")
    rate = float(expit(epsilon))
    beta = float(binom.sf(correct - 1, guesses, rate))
    if delta == 0.0 or correct == 0:
        return beta
    i = np.arange(1, correct + 1)
    steepest = float(np.max((binom.sf(correct - 1 - i, guesses, rate) - beta) / i, initial=0.0))
    return min(1.0, beta + 2 * canaries * delta * steepest)


def epsilon(correct: int, guesses: int, canaries: int, *, significance: float, delta: float) -> float:
    """The largest ε that so many correct guesses refute, or 0.

    Args:
        significance: in (0, 1). If the guesses were picked by a threshold that was chosen on the same run among T, give a
            T-th of it.

    Raises:
        UsageError: as ``p_value``.

    Guarantees:
        If each canary was in by an independent fair coin and the guesses do not depend on the coins otherwise than through
        the run, the true ε at δ is smaller with probability at most ``significance``.
    """
    _check(correct, guesses, canaries, delta)
    _check_significance(significance)
    return _largest(lambda e: significance - p_value(correct, guesses, canaries, e, delta))


def gaussian_epsilon(correct: int, guesses: int, canaries: int, *, significance: float, delta: float) -> float:
    """As ``epsilon`` for a mechanism of the Gaussian family: its whole trade-off curve is tested, which proves more.

        r_v = α v/m,  h_v = α (r - v)/m;   for i = v-1 … 0:
            h_i = max(h_{i+1}, Φ(Φ⁻¹(r_{i+1}) - μ)),   r_i = r_{i+1} + i/(r - i) (h_i - h_{i+1})
        μ(ε, δ) is refuted if r_0 + h_0 > r/m      (r without index: the number of guesses)

    Source: Mahloujifar, Melis and Chaudhuri, arXiv 2410.22235.
    """
    _check(correct, guesses, canaries, delta)
    _check_significance(significance)
    if not delta > 0:
        raise UsageError("A Gaussian mechanism has a finite epsilon only at delta above 0. Give one, such as 1e-5.")

    def excess(e: float) -> float:
        return _blown_up(correct, guesses, significance / canaries, _mu(e, delta)) - guesses / canaries

    return _largest(excess)


def _blown_up(correct: int, guesses: int, unit: float, mu: float) -> float:
    r, h = unit * correct, unit * (guesses - correct)
    for i in range(correct - 1, -1, -1):
        raised = max(h, float(ndtr(ndtri(r) - mu)))
        if raised == h:
            # Neither number can change any more.
            break
        r, h = min(1.0, r + i / (guesses - i) * (raised - h)), raised
    return r + h


@cache
def _mu(epsilon: float, delta: float) -> float:
    """The μ of the Gaussian mechanism that is exactly (ε, δ)-private."""
    found = root_scalar(
        lambda log_mu: gaussian.epsilon(math.exp(-log_mu), delta) - epsilon, bracket=(-40.0, 10.0), method="brentq"
    )
    return math.exp(found.root)


def _largest(refuted: Callable[[float], float]) -> float:
    """The root of a decreasing function; 0 if it is not positive at 0."""
    if refuted(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) > 0:
        if high >= _LARGEST:
            return high
        low, high = high, 2 * high
    return float(root_scalar(refuted, bracket=(low, high), method="brentq", xtol=_TOLERANCE).root)


def _check(correct: int, guesses: int, canaries: int, delta: float) -> None:
    if not 0 <= correct <= guesses <= canaries or canaries < 1:
        raise UsageError(
            f"{correct} correct of {guesses} guesses about {canaries} canaries cannot be. Give correct ≤ guesses ≤ canaries."
        )
    if not 0.0 <= delta < 1.0:
        raise UsageError(f"delta={delta} is out of range. It must be at least 0 and below 1.")


def _check_significance(significance: float) -> None:
    if not 0.0 < significance < 1.0:
        raise UsageError(f"significance={significance} is out of range. It must lie between 0 and 1, such as 0.05.")
