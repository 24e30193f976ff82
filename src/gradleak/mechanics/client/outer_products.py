"""A stack of weight gradients as sums of outer products, never formed, with the operations that a matching attack or a clip
needs: norm, inner product, distance. Must not know models: what is in the factors is ``factored``'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_BLOCK = 2**16
"""Entries of a weight-sized residual that are worked on at once: the two of float32 in use take half a megabyte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FactoredMatrix:
    """A stack of matrices Σ_t left_t right_tᵀ, never formed.

    Attributes:
        left: ``[restarts tokens rows]``; right: ``[restarts tokens columns]``.
    """

    left: Float[Tensor, "restarts tokens rows"]
    right: Float[Tensor, "restarts tokens columns"]

    def dense(self) -> Float[Tensor, "restarts rows columns"]:
        return self.left.transpose(1, 2) @ self.right

    def scaled(self, factor: float | Float[Tensor, " restarts"]) -> FactoredMatrix:
        by = factor.view(-1, 1, 1) if isinstance(factor, Tensor) else factor
        return FactoredMatrix(left=self.left * by, right=self.right)

    def inner(self, other: Tensor) -> Float[Tensor, " restarts"]:
        """Frobenius inner product with one matrix (any shape of the same entries)."""
        matrix = other.reshape(self.left.shape[2], self.right.shape[2])
        return ((self.left @ matrix) * self.right).sum((1, 2))

    def square(self) -> Float[Tensor, " restarts"]:
        """Squared Frobenius norm, from the two Gram matrices of the tokens."""
        return ((self.left @ self.left.transpose(1, 2)) * (self.right @ self.right.transpose(1, 2))).sum((1, 2))

    def distance(self, other: Tensor, l1: float) -> Float[Tensor, " restarts"]:
        """‖M − other‖² + l1·‖M − other‖₁ per restart, differentiable once in the factors."""
        matrix = other.reshape(self.left.shape[2], self.right.shape[2])
        return _Distance.apply(self.left, self.right, matrix, l1)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSum:
    """A stack of gradients of a lookup table: the sums of ``rows`` by ``index``, never formed.

    Attributes:
        index: ``[restarts tokens]``, rows of the table.
        rows: ``[restarts tokens columns]``; height: rows that the table has.
    """

    index: Int64[Tensor, "restarts tokens"]
    rows: Float[Tensor, "restarts tokens columns"]
    height: int

    def dense(self) -> Float[Tensor, "restarts rows columns"]:
        total = self.rows.new_zeros(self.rows.shape[0], self.height, self.rows.shape[2])
        return total.scatter_add(1, self.index.unsqueeze(-1).expand_as(self.rows), self.rows)

    def inner(self, other: Tensor) -> Float[Tensor, " restarts"]:
        """Inner product with one table."""
        return (other[self.index] * self.rows).sum((1, 2))


class _Distance(torch.autograd.Function):
    """Residual, value and both factor gradients while a block of rows of the residual is hot; no residual is kept."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, target: Tensor, l1: float) -> Tensor:
        wants_gradient = any(ctx.needs_input_grad)
        values = left.new_empty(left.shape[0])
        to_left, to_right = (torch.empty_like(left), torch.empty_like(right)) if wants_gradient else (None, None)
        for i in range(left.shape[0]):
            slopes = (to_left[i], to_right[i].zero_()) if to_left is not None and to_right is not None else None
            values[i] = _distance(left[i], right[i], target, l1, slopes)
        ctx.save_for_backward(to_left, to_right)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        to_left, to_right = ctx.saved_tensors
        scale = grad_outputs[0].view(-1, 1, 1)
        return scale * to_left, scale * to_right, None, None


def _distance(
    left: Float[Tensor, "tokens rows"],
    right: Float[Tensor, "tokens columns"],
    target: Float[Tensor, "rows columns"],
    l1: float,
    slopes: tuple[Tensor, Tensor] | None,
) -> Float[Tensor, ""]:
    """‖R‖² + l1·‖R‖₁ of R = leftᵀ right − target; with ``slopes`` (the second one zero) it writes both gradients there.

    With H = R + l1/2 · sign R, half the slope in R, the value is 2⟨R, H⟩ − ⟨R, R⟩: two dot products, no pass for |R|.
    A matrix is taken by blocks of rows that stay in a core's own cache from the first of these passes to the last.
    """
    rows = max(1, _BLOCK // target.shape[1])
    value = left.new_zeros(())
    for start in range(0, target.shape[0], rows):
        block = slice(start, start + rows)
        residual = torch.mm(left[:, block].T, right).sub_(target[block])
        half = torch.sign(residual).mul_(l1 / 2).add_(residual) if l1 else residual
        square = torch.dot(residual.view(-1), residual.view(-1))
        value += 2 * torch.dot(residual.view(-1), half.view(-1)) - square if l1 else square
        if slopes is not None:
            slopes[0][:, block] = torch.mm(right, half.T)
            slopes[1].addmm_(left[:, block], half)
    if slopes is not None:
        slopes[0].mul_(2)
        slopes[1].mul_(2)
    return value


Simulated = Mapping[str, Tensor | FactoredMatrix]
"""Candidate updates by name: dense tensors with a leading ``restarts`` axis, or factors."""

Part = Tensor | FactoredMatrix | RowSum
"""One summand of a parameter's gradient: what one use of the parameter contributes."""


def scale(part: Tensor | FactoredMatrix, factor: Float[Tensor, " restarts"]) -> Tensor | FactoredMatrix:
    """A candidate gradient, dense or in factors, times one number per restart."""
    return part.scaled(factor) if isinstance(part, FactoredMatrix) else part * factor.view(-1, *[1] * (part.ndim - 1))


def squared_norm(simulated: Simulated) -> Float[Tensor, " restarts"]:
    """Squared Euclidean norm of every candidate update, over all its tensors."""
    parts = [p.square() if isinstance(p, FactoredMatrix) else p.square().flatten(1).sum(1) for p in simulated.values()]
    return torch.stack(parts).sum(0)
