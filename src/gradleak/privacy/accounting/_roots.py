"""Why: one typed door to scipy's root finder. Must not know what is solved for."""

from __future__ import annotations

from collections.abc import Callable

from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]


def root(function: Callable[[float], float], low: float, high: float, *, tolerance: float = 1e-12) -> float:
    """An x in [low, high] with function(x) = 0; the signs at the two ends must differ."""
    return float(optimize.brentq(function, low, high, xtol=tolerance))  # pyright: ignore[reportArgumentType]
