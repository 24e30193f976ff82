"""Sharing only the leading directions of every matrix filters out detail; the directions themselves are shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import require, working_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank(UpdateStage):
    """Replaces every matrix by its best approximation of a given rank; vectors are shared as they are.

        released = Σ_{k ≤ r} σ_k a_k b_kᵀ,   σ, a, b the leading singular values and vectors of u_t

    Tensors of more than two axes count as matrices of their first axis by the rest.

    Args:
        rank: r, at least 1.

    Raises:
        SpecError: if ``rank`` is below 1.

    Guarantees:
        Deterministic; the released norm is at most that of the input, up to rounding in its last digits.
        The surrogate leaves out of a candidate only what lies outside both the row and the column space that the release
        shows (the projection on the tangent space of matrices of that rank): exact at the truth, because those are the
        truth's own leading singular spaces. No differential privacy.

    Source: low-rank filtering of arXiv 2305.06473, by the notes.
    """

    summary: ClassVar[str] = "Replaces every matrix of the update by its best approximation of a small rank."

    rank: int

    def __post_init__(self) -> None:
        require(self.rank >= 1, "low_rank", "rank", self.rank, "at least 1")

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        return update.map(lambda _, tensor: self._filtered(tensor))

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: self._projected(tensor, observed[name]) for name, tensor in simulated.items()}

    def _filtered(self, tensor: Tensor) -> Tensor:
        if tensor.ndim < 2:
            return tensor
        left, sizes, right = torch.linalg.svd(_matrix(tensor), full_matrices=False)
        r = self.rank
        return ((left[:, :r] * sizes[:r]) @ right[:r]).view(tensor.shape).to(tensor.dtype)

    def _projected(self, simulated: Tensor, observed: Tensor) -> Tensor:
        if observed.ndim < 2:
            return simulated
        left, sizes, right = torch.linalg.svd(_matrix(observed), full_matrices=False)
        present = (sizes[: self.rank] > 0).to(sizes)
        left, right = left[:, : self.rank] * present, right[: self.rank] * present[:, None]
        flat = simulated.flatten(2)
        left, right = left.to(flat), right.to(flat)
        columns = left @ (left.T @ flat)
        return (columns + ((flat - columns) @ right.T) @ right).view(simulated.shape)


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.to(working_dtype(tensor)).flatten(1)
