"""The gradient of a trained token embedding lists the tokens of the batch. Row v of its gradient is the sum of the error signals of the positions
that hold token v, and rows of absent tokens are zero; the position table sums the same signals by position.

    dL/dE_v = Σ_{t : token(t) = v} δ_t,      dL/dP_i = Σ_{t : position(t) = i} δ_t.

With one record each position holds one token, so dL/dE = A dL/dP with A the 0/1 token-by-position incidence, which
least squares reads off exactly while the δ of the positions are independent. Must not know any attack.

Noise on the gradient of a table fills rows that no signal reached, and these tell its size; a row then holds a signal if
noise alone would hardly give it as much energy. Must not know what the rows stand for.

A row of ``width`` entries of white noise has energy σ² χ²_width; with the sum δ of its error signals, σ² χ'²_width(‖δ‖² / σ²).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from scipy import stats
from scipy.special import chdtri
from scipy.stats import chi2
from torch import Tensor

_FALSE_ALARM = 0.05
"""Probability that noise alone puts any row of a whole table among the tokens: the usual 5 %."""
_ROWS = 1024
"""Rows that are held in float64 at a time; the result does not depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """Which tokens a batch holds.

    Attributes:
        ids: token ids, largest row norm first.
        exact: True if the other rows are exactly zero; False if the ids were told from a dense background.
        noise: standard deviation per entry of the background where it is white noise (0 if exact): then any of the ids is false
            with probability at most 0.05. None where the background follows no law that is known (a tied head).
    """

    ids: Int64[Tensor, " tokens"]
    exact: bool
    noise: float | None = None

    @property
    def reliable(self) -> bool:
        """Whether the rate of false ids is known."""
        return self.noise is not None


def token_support(rows: Float[Tensor, "vocab model"], *, at_most: int | None = None, white: bool = True) -> Support:
    """Tokens whose embedding row received a signal.

    Where most rows are exactly zero the support is the rest. Otherwise almost all rows form a background. If it is white
    noise (``row_noise``), a row is taken if noise gives it that energy with probability below 0.05 / vocab. If it is
    not (tied head), the log row energy of the background is summarized by its median and median deviation, and a normal law
    of that center and width takes the place of the exact one.

    Args:
        rows: gradient of the token embedding.
        at_most: upper bound on the number of distinct tokens (batch size × length), if known.
        white: whether the background may be white noise; rounding of the weights in a delta is larger where weights are.
    """
    # Block by block: a large vocabulary in float64 would be the largest tensor of all.
    energy = torch.cat([part.double().square().sum(1) for part in rows.split(_ROWS)])
    nonzero = int((energy > 0).sum())
    exact = nonzero <= rows.shape[0] // 2
    noise = 0.0 if exact else row_noise(energy, rows.shape[1], false_alarms=_FALSE_ALARM) if white else None
    if noise is not None:
        taken = rows_above(energy, rows.shape[1], noise=noise, false_alarms=_FALSE_ALARM).nonzero().flatten()
    else:
        level = energy.clamp_min(torch.finfo(torch.float64).tiny).log()
        center = level.median()
        width = 1.4826 * (level - center).abs().median()
        threshold = center + float(stats.norm.isf(_FALSE_ALARM / rows.shape[0])) * width
        taken = (level > threshold).nonzero().flatten()
    ranked = taken[energy[taken].argsort(descending=True)]
    return Support(ids=ranked if at_most is None else ranked[:at_most], exact=exact, noise=noise)


def order_of_one(
    rows: Float[Tensor, "vocab model"], positions: Float[Tensor, "positions model"], support: Int64[Tensor, " tokens"]
) -> Int64[Tensor, " seq"] | None:
    """The token at each position of a single record, from the two embedding gradients.

    Args:
        positions: gradient of the position table; rows that received no signal are left out, in order.

    Returns:
        Token ids by position, or None unless every position holds exactly one token of the support after rounding and
        the rounded incidence explains the token rows better than half.
    """
    used = positions.double()[positions.abs().amax(1) > 0]
    wanted = rows.double()[support]
    if used.shape[0] == 0 or used.shape[0] > used.shape[1] or wanted.shape[0] == 0:
        return None
    incidence = torch.linalg.lstsq(used.T, wanted.T).solution.T.round()  # [tokens seq]
    one_each = bool(((incidence == 0) | (incidence == 1)).all()) and bool((incidence.sum(0) == 1).all())
    if not one_each or float((incidence @ used - wanted).norm()) > 0.5 * float(wanted.norm()):
        return None
    return support[incidence.argmax(0)]


_ROUNDS = 16
"""Alternations at most between the noise and the rows that it explains; they end earlier where the noise repeats."""
_DEVIATIONS = 4.0
"""Standard errors within which the quartiles of noise lie but for one table in 10⁴."""
_FEWEST = 8
"""Rows that are not zero from which their median is taken for the noise."""


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
