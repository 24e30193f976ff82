"""Equations that every record of a batch satisfies by itself: whatever a map reads of it lies in the row space of the map's
gradient. They need forward passes alone, no labels, and no other record.

    dL/dM = Σ_t δ_t h_tᵀ  ⇒  h_t ∈ rows(dL/dM) for every token t with δ_t ≠ 0;  with the bias: [h_t, 1] ∈ rows([dL/dM, dL/db])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradleak.attacks.patch_batch.reading import BatchCase
from gradleak.mechanics.patches.passes import DoublePass
from gradleak.models import LinearMap

_GROUPS = 3
"""Groups of maps behind the first attention: its output, the feed-forward part, and the next attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadSpace:
    """What one group of maps reads.

    Attributes:
        path: of one map of the group; they read the same.
        basis: orthonormal columns of the row space, the last row for the constant.
        constant: that stands for the bias, of the size of an entry.
        tokens: those that the group's gradients are made of.
    """

    path: str
    basis: Float[Tensor, "features_and_one rank"]
    constant: float
    tokens: Bool[Tensor, " seq"]

    def residual(self, read: Float[Tensor, "batch seq features"]) -> Float[Tensor, "batch entries"]:
        """Parts of the inputs outside of the space, in units of an input."""
        held = read[:, self.tokens]
        one = held.new_full((*held.shape[:2], 1), self.constant)
        rows = torch.cat([held, one], dim=2) / (self.constant * math.sqrt(read.shape[2]))
        return (rows - (rows @ self.basis) @ self.basis.T).flatten(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadEquations:
    """All groups together."""

    passes: DoublePass
    spaces: tuple[ReadSpace, ...]

    def __call__(self, pictures: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch entries"]:
        """Zero, up to the noise of the spaces, for every record of the batch. Pictures as the model reads them."""
        read = self.passes.inputs_of([space.path for space in self.spaces], pictures)
        return torch.cat([space.residual(each) for space, each in zip(self.spaces, read, strict=True)], dim=1)


def read_equations(case: BatchCase) -> ReadEquations:
    """The equations of the groups behind the first attention that leave any."""
    groups = [
        group
        for group in case.subject.anatomy.maps_behind()[:_GROUPS]
        if group and all(m.weight in case.shared for m in group)
    ]
    paths = [group[0].module for group in groups]
    tokens = [_trained(case, group) for group in groups]
    with torch.no_grad():
        read = case.passes.inputs_of(paths, case.passes.generic_picture()) if paths else []
    spaces = []
    for group, held, seen in zip(groups, tokens, read, strict=True):
        constant = float(seen[0][held].square().mean().sqrt()) or 1.0
        rank = case.records * int(held.sum())
        stacked = torch.cat([_with_bias(case, m, constant) for m in group])
        if 0 < rank < stacked.shape[1] - 1:
            basis = torch.linalg.svd(stacked, full_matrices=False).Vh[:rank].T
            spaces.append(ReadSpace(path=group[0].module, basis=basis, constant=constant, tokens=held))
    return ReadEquations(passes=case.passes, spaces=tuple(spaces))


def _trained(case: BatchCase, group: tuple[LinearMap, ...]) -> Bool[Tensor, " seq"]:
    """Tokens with an error signal at any map of the group: queries may be asked of one token only, keys and values of all."""
    return torch.stack(case.passes.trained_tokens([m.module for m in group])).any(dim=0)


def _with_bias(case: BatchCase, linear: LinearMap, constant: float) -> Float[Tensor, "outputs features_and_one"]:
    weight = linear.as_matrix(case.shared[linear.weight])
    bias = case.shared.get(linear.bias or "")
    column = weight.new_zeros(len(weight)) if bias is None else bias * constant
    joined = torch.cat([weight, column.unsqueeze(1)], dim=1)
    return joined / joined.norm().clamp_min(torch.finfo(joined.dtype).tiny)
