"""A vector is called a member of a column space because a non-member would hardly ever come so close. Here are the laws
of what non-members show, fitted on vectors that are none, and the verdict between the two. Must not know how a space was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import ndtri
from scipy.stats import beta
from torch import Tensor

_TINY = 1e-300


@dataclass(frozen=True, kw_only=True, slots=True)
class Null:
    """The law of the squared residual of vectors that are no members: Beta(a, b), fitted by moments."""

    a: float
    b: float

    def cut(self, false_alarms: float) -> float:
        """The residual below which one non-member falls with probability ``false_alarms``."""
        return math.sqrt(float(beta.ppf(false_alarms, self.a, self.b)))


def fit_null(residuals: Float[Tensor, " samples"]) -> Null:
    """Fits the null to a sample that is mostly null.

    Members and near-members would pull the fit towards zero, so values that the fit itself gives less than one chance
    in the sample are dropped, and the fit is repeated until it is stable.
    """
    squares = residuals.double().square().clamp(1e-12, 1 - 1e-12)
    kept = squares[squares > squares.median() / 4]
    for _ in range(8):
        null = _beta_of(kept)
        trimmed = squares[squares > null.cut(0.5 / len(squares)) ** 2]
        if len(trimmed) == len(kept) or len(trimmed) < 8:
            break
        kept = trimmed
    return _beta_of(kept)


def _beta_of(squares: Tensor) -> Null:
    mean = float(squares.mean())
    variance = max(float(squares.var()), 1e-12)
    size = max(mean * (1 - mean) / variance - 1, 1e-3)
    return Null(a=mean * size, b=(1 - mean) * size)


@dataclass(frozen=True, kw_only=True, slots=True)
class LogNull:
    """The law of the residual of wrong continuations: normal in its logarithm.

    Attention dilutes a wrong token by the weight that it gives itself, a factor that varies by orders of magnitude; a
    Beta law fitted to such a mixture puts its lower tail where members are.
    """

    center: float
    width: float

    @staticmethod
    def of(residuals: Float[Tensor, " samples"]) -> LogNull:
        """Fitted to median and central 68 %, so that a few members among the samples do no harm."""
        logs = residuals.double().clamp(min=_TINY).log()
        low, middle, high = torch.quantile(logs, logs.new_tensor([0.16, 0.5, 0.84])).tolist()
        return LogNull(center=middle, width=max((high - low) / 2, 0.05))

    def cut(self, false_alarms: float) -> float:
        """The residual below which one wrong continuation falls with probability ``false_alarms``."""
        return math.exp(self.center + self.width * float(ndtri(false_alarms)))


def accept(residual: Float[Tensor, "*batch"], expected: Float[Tensor, "*batch"], *, null_cut: float) -> torch.Tensor:
    """Members: below what a non-member can show, and nearer (in logarithm) to what a member must show.

    Where noise makes a member's expected residual exceed the null's cut the cut alone decides.
    """
    return log_odds(residual, expected, null_cut=null_cut) < 0


def log_odds(
    residual: Float[Tensor, "*batch"], expected: Float[Tensor, "*batch"], *, null_cut: float
) -> Float[Tensor, "*batch"]:
    """How far a residual lies beyond the middle between member and null, in logarithms; negative for a member.

    Tests add up: one that separates by many decades outweighs one that hardly separates.
    """
    middle = (expected.clamp(max=null_cut) * null_cut).sqrt()
    return (residual.clamp(min=_TINY) / middle).log()
