"""ε is one way to say how much protection is wanted. These are the others, on one axis: the noise multiplier that each asks for. Must not search for it: ``calibrate`` does.

epsilon     (ε, δ) at most so much
success     no attacker finds the record in a list of K more often than p
bits        the release tells at most b bits about the record
span        attacks on the span of one attention gradient are dead; says nothing about any other attack
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting.accountant import curve, success
from gradleak.privacy.accounting.closed_forms import root
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.plan.views import resolve

_FAMILY_WISE, _RECALL = 0.05, 0.5


class Target(ABC):
    """What noise is to achieve."""

    @abstractmethod
    def excess(self, plan: Plan) -> float:
        """Positive where the plan misses the target, on a logarithmic scale; falls as the noise grows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpsilonAtMost(Target):
    """ε at the plan's δ."""

    epsilon: float

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and math.isfinite(self.epsilon)):
            raise UsageError(f"target epsilon={self.epsilon} is out of range. It must be positive and finite.")

    def excess(self, plan: Plan) -> float:
        epsilon = curve(resolve(plan)).epsilon(plan.delta)
        return 700.0 if math.isinf(epsilon) else math.log(max(epsilon, 1e-12) / self.epsilon)

    def __str__(self) -> str:
        return f"ε ≤ {self.epsilon:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SuccessAtMost(Target):
    """The chance of any attacker to name the record from a list of ``candidates`` equally likely ones."""

    probability: float
    candidates: int

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise UsageError(
                f"candidates={self.candidates} is out of range. A list needs at least 2 entries to hide in."
            )
        if not 1 / self.candidates < self.probability < 1:
            raise UsageError(
                f"A success of at most {self.probability:g} cannot be had among {self.candidates} candidates: guessing alone "
                f"succeeds with {1 / self.candidates:g}. Ask for a number between that and 1."
            )

    def excess(self, plan: Plan) -> float:
        return math.log(success(plan, 1 / self.candidates) / self.probability)

    def __str__(self) -> str:
        return f"at most {100 * self.probability:g} % chance to find it in a list of {self.candidates}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BitsAtMost(Target):
    """Mutual information of the unit with everything released, worst case over data."""

    bits: float

    def __post_init__(self) -> None:
        if not (self.bits > 0 and math.isfinite(self.bits)):
            raise UsageError(f"target bits={self.bits} is out of range. It must be positive and finite.")

    def excess(self, plan: Plan) -> float:
        return math.log(resolve(plan).signal / (2 * math.log(2)) / self.bits)

    def __str__(self) -> str:
        return f"at most {self.bits:g} bit{'s' if self.bits != 1 else ''} leaked"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanDead(Target):
    """The most powerful test for one token in the gradient of one matrix finds half of them or fewer.

        λ = f/(n·z²), recall P(χ'²_m(λ) > t), t the χ²_m quantile at 1 - 0.05/V

    with all releases of the same record averaged, that is z/√T.

    Attributes:
        columns: m of the matrix. candidates: V. tokens: n in the batch, of equal energy. share: f, the share of the squared norm
            of the whole gradient that lies in this matrix.

    Guarantees:
        None against other attacks: those that simulate the gradient are bounded by ``SuccessAtMost`` alone.
    """

    columns: int
    candidates: int = 50257
    tokens: int = 1
    share: float = 1.0

    def excess(self, plan: Plan) -> float:
        return math.log(self.share / self.tokens * resolve(plan).signal / self._half_recall())

    def _half_recall(self) -> float:
        threshold = float(stats.chi2.isf(_FAMILY_WISE / self.candidates, self.columns))
        return root(lambda x: float(stats.ncx2.sf(threshold, self.columns, x)) - _RECALL, 1e-6, 2 * threshold)

    def __str__(self) -> str:
        return f"span attacks dead (matrix with {self.columns} columns, {self.tokens} tokens)"
