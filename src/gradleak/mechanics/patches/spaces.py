"""What the update of several records says about their patches exactly: the patch at one position lies, for every record, in one
affine space that is known. Must not know models or attacks.

    dL/dW = Σ_b Δ_bᵀ X_b = L Σ Uᵀ            its row space U holds every patch, as x = U a
    Σ_b Δ_b = position rows                 a · r_p = δ_qp  for a patch at position q,  r_p = Σ⁻¹ Lᵀ (Σ_b Δ_b)_p
    normalized tokens ∈ S (rows of dL/dW_qkv)   Nᵀ (γ ∘ C (W U a + offset_p)) = 0 for N ⊥ S and N ⊥ the norm's offset

The second and the third line give the same spaces: x_bp ∈ s_p + V with dim V = (records − 1) · patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.patches.first_tokens import FirstTokens
from gradleak.mechanics.subspace.frames import complement


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchSpaces:
    """Every record's patch at position p lies in ``offsets_p + directions``.

    Attributes:
        offsets: the points of least norm; directions: orthonormal columns, the same for all positions.
        gap: the smallest singular value that was taken for an equation over the largest that was taken for rounding.
        certificate: relative residual of the equations at the offsets.
        standard_error: of one entry of the offsets, rms, from that residual; infinite without an equation to spare.
    """

    offsets: Float[Tensor, "patches features"]
    directions: Float[Tensor, "features free"]
    gap: float
    certificate: float
    standard_error: float


def row_space(
    gradient: Float[Tensor, "width features"], rank: int
) -> tuple[Float[Tensor, "width rank"], Float[Tensor, " rank"], Float[Tensor, "features rank"]]:
    """The leading part of L Σ Uᵀ = gradient."""
    left, values, right = torch.linalg.svd(gradient.double(), full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank].T


def spaces_from_positions(
    rows: Float[Tensor, "patches width"], gradient: Float[Tensor, "width features"], *, records: int
) -> PatchSpaces:
    """From the gradients of the position table and of the patch map; no weights are needed."""
    left, values, basis = row_space(gradient, records * len(rows))
    system = rows.double() @ left / values
    return _solved(system, torch.eye(len(rows), dtype=torch.float64), basis, records=records)


def spaces_from_norm(
    tokens: FirstTokens,
    gradient: Float[Tensor, "width features"],
    readers: list[Float[Tensor, "outputs width"]],
    *,
    records: int,
) -> PatchSpaces:
    """From the gradients of the patch map and of the maps that read the first normalized tokens; for a table that is not shared.

    Args:
        readers: gradients of the first attention's input maps, output axis first.
    """
    patches = len(tokens.offsets)
    _, _, basis = row_space(gradient, records * patches)
    stacked = torch.cat(
        [
            gradient_of_map.double() / gradient_of_map.double().norm()
            for gradient_of_map in readers
            if bool(gradient_of_map.any())
        ]
    )
    held = torch.linalg.svd(stacked, full_matrices=False).Vh[: records * patches + len(tokens.others)].T
    if bool(tokens.norm.offset.any()):
        held = torch.cat([held, tokens.norm.offset.double().unsqueeze(1)], dim=1)
    outside = complement(held)
    folded = tokens.norm.fold(outside).T
    return _solved(folded @ tokens.weight @ basis, -(folded @ tokens.offsets.T), basis, records=records)


def _solved(
    system: Float[Tensor, "equations unknowns"],
    right: Float[Tensor, "equations patches"],
    basis: Float[Tensor, "features unknowns"],
    *,
    records: int,
) -> PatchSpaces:
    """The affine solution sets of system · a = right; the rank follows from the counts and is not read off."""
    patches = right.shape[1]
    rank = system.shape[1] - (records - 1) * patches
    left, values, turned = torch.linalg.svd(system, full_matrices=True)
    kept = values[:rank]
    points = (turned[:rank].T / kept) @ (left[:, :rank].T @ right)
    residual = system @ points - right
    rest = float(values[rank]) if rank < len(values) else 0.0
    freedom = system.shape[0] - rank
    error = math.inf
    if freedom > 0:
        variance = float(residual.square().sum()) / (freedom * patches)
        error = math.sqrt(variance * float(kept.reciprocal().square().sum()) / basis.shape[0])
    return PatchSpaces(
        offsets=(basis @ points).T,
        directions=basis @ turned[rank:].T,
        gap=float(kept[-1]) / max(rest, torch.finfo(torch.float64).tiny),
        certificate=float(residual.norm() / right.norm()),
        standard_error=error,
    )
