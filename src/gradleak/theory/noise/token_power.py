"""Who knows the vocabulary need not find the span first. For a candidate input x of the layer, with x̂ the unit
vector of its part outside the tokens already accepted, and a noisy gradient Y = x δᵀ + rest + σ Z of m columns

    T = ‖Yᵀ x̂‖² / σ²   ~  χ²_m            if x is not in the batch
                        ~  χ'²_m(λ)        if it is, λ = ‖x_perp‖² ‖δ‖² / σ²

For an error signal δ of no known direction T is the most powerful statistic (it is the only invariant one), so its power
caps every test at this rate of false alarms that does not re-simulate δ. There is no rank and no tolerance to set: the threshold is the χ² quantile
for α false alarms among M candidates.

Must not know models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import optimize
from scipy.special import chdtri, chndtr, ndtr
from torch import Tensor

from gradleak.core.errors import SpecError

CONDITIONS = (
    "noise independent and Gaussian with one known standard deviation on every entry of this gradient",
    "the attacker takes the error signals for isotropic and independent from token to token (it does not re-simulate them)",
    "false alarms among all candidates kept at the stated rate (a search that has not yet found the other tokens finds more, "
    "and more that are false)",
)
"""What the power of the test certifies, and only under these: with all three a token is found with at most this
probability, whatever the span-type attack."""


_CERTAIN = 12.0
"""Standard deviations above the threshold beyond which a token is found for certain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTest:
    """The test of ``candidates`` vectors against a gradient with ``columns`` columns.

    Attributes:
        columns: m, degrees of freedom.
        candidates: M, in the whole family.
        false_alarms: α, the probability that the family accepts any vector that is not in the batch.
    """

    columns: int
    candidates: int
    false_alarms: float = 0.05

    def __post_init__(self) -> None:
        if self.columns < 1 or self.candidates < 1 or not 0 < self.false_alarms < 1:
            raise SpecError(f"A token test needs columns, candidates and 0 < false_alarms < 1, got {self}.")

    @property
    def threshold(self) -> float:
        """T above this is accepted."""
        return float(chdtri(self.columns, self.false_alarms / self.candidates))

    def power(self, strength: float) -> float:
        """Probability that a token of non-centrality λ = ``strength`` is accepted."""
        mean, spread = self.columns + strength, math.sqrt(2.0 * (self.columns + 2.0 * strength))
        if mean - self.threshold > _CERTAIN * spread:
            # Also where the series for the distribution no longer converges.
            return 1.0
        return 1.0 - float(chndtr(self.threshold, self.columns, strength))

    def strength_for(self, power: float) -> float:
        """The λ at which a token is accepted with probability ``power``.

        About 2·sqrt(m·L) + 2L with L = ln(M/α) for one half; solved exactly here.
        """
        if not self.false_alarms / self.candidates < power < 1:
            raise SpecError(f"The power must lie between α/M and 1, got {power}.")
        high = 1.0
        while self.power(high) < power:
            high *= 2.0
        return _root(lambda strength: self.power(strength) - power, 0.0, high)


def strengths(
    inputs: Float[Tensor, "tokens features"], errors: Float[Tensor, "tokens columns"]
) -> Float[Tensor, " tokens"]:
    """λ·σ² = ‖x_perp‖² ‖δ‖² of every distinct token, x_perp taken outside all the others'.

    ‖x_perp‖² is one over the diagonal of (X Xᵀ)⁻¹. Tokens that are combinations of the others have 0.

    Args:
        inputs: distinct inputs of the layer; rows of one input are merged by the caller.
        errors: the sum of the error signals of each.
    """
    x = inputs.double()
    values, vectors = torch.linalg.eigh(x @ x.T)
    small = values < 1e-12 * values[-1]
    weight = vectors.square()
    inverse = (weight / values.clamp(min=1e-300)).where(~small, weight.new_zeros(())).sum(1)
    # A token that leans on a vanishing direction is a combination of the others: nothing of it is its own.
    dependent = (weight * small).sum(1) > 1e-9
    outside = torch.where(dependent, 0.0, 1.0 / inverse.clamp(min=1e-300))
    return outside * errors.double().square().sum(1)


def mean_power(test: TokenTest, strength: Float[Tensor, " tokens"], noise_std: float) -> float:
    """The share of tokens that the test is expected to find: predicted token recall.

    Args:
        strength: λ·σ² per token, as ``strengths`` returns it.
    """
    if noise_std == 0:
        return float((strength > 0).double().mean())
    return math.fsum(test.power(float(value) / noise_std**2) for value in strength) / len(strength)


def told_apart(strength: float, *, columns: int, cosine: float) -> float:
    """The probability that the true one of two candidates has the larger T.

    In units of σ², T − T' has mean s²λ and, for s² = 1 − cosine², standard deviation 2s √(λ + m): Φ(s λ / (2 √(λ + m))).

    Args:
        strength: λ of the true one; cosine: of both candidates, outside the accepted tokens.
    """
    apart = math.sqrt(1.0 - cosine**2)
    return float(ndtr(apart * strength / (2.0 * math.sqrt(strength + columns))))


def dies_at(test: TokenTest, strength: Float[Tensor, " tokens"], *, recall: float = 0.5) -> float:
    """The noise per entry at which predicted recall falls to ``recall``; 0 if it is below even without noise."""
    if mean_power(test, strength, 0.0) <= recall:
        return 0.0
    scale = math.sqrt(float(strength.max()))
    low, high = 1e-12 * scale, scale
    return math.exp(
        _root(lambda log: mean_power(test, strength, math.exp(log)) - recall, math.log(low), math.log(high))
    )


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    solution: Any = optimize.root_scalar(function, bracket=(low, high), rtol=1e-6)
    return float(solution.root)
