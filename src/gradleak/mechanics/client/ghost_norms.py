"""Clipping needs every example's norm and one weighted sum, not every example's gradient. Both follow from the factors
of one forward and one backward pass, so B·P numbers need not be held:

    G_i = Σ_t l_it r_itᵀ    ‖G_i‖² = Σ_{t,u} (l_it · l_iu)(r_it · r_iu)    Σ_i w_i G_i = Σ_{i,t} (w_i l_it) r_itᵀ

Must not know stages, noise or clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.mechanics.client.factored import factor_gradients
from gradleak.mechanics.client.outer_products import FactoredMatrix, Part, RowSum
from gradleak.models import Subject


@dataclass(frozen=True, kw_only=True, slots=True)
class GhostGradients:
    """The gradients of the B examples of a batch, in factors.

    Attributes:
        parts: name → the summands of that parameter's gradient, each with a leading axis of B.
        like: name → the parameter, for the shape of the sum.

    Guarantees:
        The sum is made of the very factors that the norms are taken of, so an example's share of it has the norm stated, up
        to rounding, whatever the model does.
    """

    parts: Mapping[str, tuple[Part, ...]]
    like: Mapping[str, Tensor]

    @staticmethod
    def of(subject: Subject, weights: Mapping[str, Tensor], data: TrainingData) -> GhostGradients | None:
        """Of every example's own mean loss at ``weights``, or None if a parameter's gradient has no factors here.

        Args:
            weights: the trained parameters; the model's others stay its own.
            data: may be padded. Noisy layers have no rule, so data with ``noise`` has none.
        """
        if data.noise or any(weight.dtype not in (torch.float32, torch.float64) for weight in weights.values()):
            return None
        names = tuple(weights)
        with torch.enable_grad():
            inputs, targets, mask = data.inputs, data.targets, data.mask
            factors = factor_gradients(subject, names, inputs, targets, mask, restarts=data.size, weights=weights)
        # A parameter without a part may be unused, or used where no rule looks: the caller's slow way knows.
        if factors is None or set(factors) != set(names):
            return None
        return GhostGradients(parts={n: tuple(map(_detached, parts)) for n, parts in factors.items()}, like=weights)

    def square_norms(self) -> Float[Tensor, " batch"]:
        """Squared Euclidean norm of every example's gradient over all its tensors, in float64."""
        return torch.stack([_square(parts) for parts in self.parts.values()]).sum(0)

    def weighted_sum(self, by: Float[Tensor, " batch"]) -> dict[str, Tensor]:
        """Σ_i by_i·G_i for every parameter, in its shape and number format."""
        return {name: self._sum(name, by) for name in self.parts}

    def _sum(self, name: str, by: Float[Tensor, " batch"]) -> Tensor:
        like = self.like[name]
        return torch.stack([_added(part, by.to(like)).reshape(like.shape) for part in self.parts[name]]).sum(0)


def _detached(part: Part) -> Part:
    if isinstance(part, FactoredMatrix):
        return FactoredMatrix(left=part.left.detach(), right=part.right.detach())
    if isinstance(part, RowSum):
        return RowSum(index=part.index, rows=part.rows.detach(), height=part.height)
    return part.detach()


def _added(part: Part, by: Float[Tensor, " batch"]) -> Tensor:
    if isinstance(part, Tensor):
        return torch.tensordot(by, part, dims=1)
    if isinstance(part, FactoredMatrix):
        return (part.left * by.view(-1, 1, 1)).flatten(0, 1).T @ part.right.flatten(0, 1)
    rows = (part.rows * by.view(-1, 1, 1)).flatten(0, 1)
    return rows.new_zeros(part.height, rows.shape[1]).index_add_(0, part.index.flatten(), rows)


def _square(parts: tuple[Part, ...]) -> Float[Tensor, " batch"]:
    """‖Σ parts‖² per example: every part with itself once, every pair of parts twice."""
    total = torch.zeros((), dtype=torch.float64)
    for place, part in enumerate(parts):
        total = total + _inner(part, part)
        for other in parts[place + 1 :]:
            total = total + 2 * _inner(part, other)
    return total


def _inner(part: Part, other: Part) -> Float[Tensor, " batch"]:
    """⟨part_i, other_i⟩ for every example i, in float64."""
    if isinstance(part, Tensor) or isinstance(other, Tensor):
        dense = [factor if isinstance(factor, Tensor) else factor.dense() for factor in (part, other)]
        return (dense[0].flatten(1).double() * dense[1].flatten(1).double()).sum(1)
    if part is other and isinstance(part, FactoredMatrix) and _dense_is_smaller(part):
        return (part.left.double().transpose(1, 2) @ part.right.double()).flatten(1).square().sum(1)
    right = [factor.right if isinstance(factor, FactoredMatrix) else factor.rows for factor in (part, other)]
    return (_left(part, other) * (right[0].double() @ right[1].double().transpose(1, 2))).sum((1, 2))


def _dense_is_smaller(part: FactoredMatrix) -> bool:
    """True for matrices with fewer entries than pairs of tokens: then forming them takes less memory and time."""
    _, tokens, rows = part.left.shape
    return rows * part.right.shape[2] < tokens * tokens


def _left(part: FactoredMatrix | RowSum, other: FactoredMatrix | RowSum) -> Float[Tensor, "batch tokens others"]:
    """Products of the left factors of every pair of an example's tokens; a table's left factors are unit vectors."""
    if isinstance(part, RowSum) and isinstance(other, RowSum):
        return (part.index.unsqueeze(2) == other.index.unsqueeze(1)).double()
    if isinstance(part, FactoredMatrix) and isinstance(other, FactoredMatrix):
        return part.left.double() @ other.left.double().transpose(1, 2)
    if isinstance(part, FactoredMatrix) and isinstance(other, RowSum):
        picked = other.index.unsqueeze(1).expand(-1, part.left.shape[1], -1)
        return part.left.gather(2, picked).double()
    return _left(other, part).transpose(1, 2)
