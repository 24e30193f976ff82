"""Why: noise on the gradient of a table fills rows that no signal reached, and these tell its size; a row then holds a signal if
noise alone would hardly give it as much energy. Must not know what the rows stand for.

A row of ``width`` entries of white noise has energy σ² χ²_width; with the sum δ of its error signals, σ² χ'²_width(‖δ‖² / σ²).
"""

from __future__ import annotations

import math

from jaxtyping import Bool, Float
from scipy.special import chdtri
from scipy.stats import chi2
from torch import Tensor

_ROUNDS = 16
_DEVIATIONS = 4.0
"""Standard errors within which the quartiles of noise lie but for one table in 10⁴."""
_FEWEST = 8


def row_noise(energy: Float[Tensor, " rows"], width: int, *, false_alarms: float) -> float | None:
    """σ per entry, from the median of the rows that hold no more than noise would.

    The law is checked on what it was not fitted to: the ratio of lower quartile and median has to be that of χ².

    Args:
        energy: squared norm of every row; width: entries of a row.
        false_alarms: probability that any of the rows is taken for a signal though it is none.

    Returns:
        None where less than half of the rows are noise of one size: few rows are empty, or a tied head wrote into all.
    """
    live = energy[energy > 0].double()
    if len(live) < max(_FEWEST, len(energy) // 2):
        return None
    quiet = live
    middle, high = float(chi2.ppf(0.5, width)), float(chdtri(width, false_alarms / len(energy)))
    level = math.inf
    for _ in range(_ROUNDS):
        fitted = float(quiet.median()) / middle
        if math.isclose(fitted, level, rel_tol=1e-9):
            break
        level = fitted
        quiet = live[live <= level * high]
    if 2 * len(quiet) < len(live):
        return None
    low = chi2.ppf(0.25, width)
    seen = math.log(float(quiet.kthvalue(max(1, len(quiet) // 4)).values) / (level * middle))
    return math.sqrt(level) if abs(seen - math.log(low / middle)) <= _DEVIATIONS * _spread(width, len(quiet)) else None


def rows_above(
    energy: Float[Tensor, " rows"], width: int, *, noise: float, false_alarms: float
) -> Bool[Tensor, " rows"]:
    """Rows with more energy than noise alone gives any of them, but with probability ``false_alarms``."""
    return energy > noise**2 * float(chdtri(width, false_alarms / len(energy)))


def _spread(width: int, rows: int) -> float:
    """Standard error of the logarithm of lower quartile over median of that many χ² variables."""
    low, middle = chi2.ppf((0.25, 0.5), width)
    slopes = [1.0 / (chi2.pdf(q, width) * q) for q in (low, middle)]
    variance = 0.1875 * slopes[0] ** 2 + 0.25 * slopes[1] ** 2 - 2 * 0.125 * slopes[0] * slopes[1]
    return math.sqrt(variance / rows)
