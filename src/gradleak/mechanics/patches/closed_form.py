"""One record's patches from two tensors of its update, by linear algebra. Must not know models or attacks.

    dL/dW = Σ_p δ_p x_pᵀ = Δᵀ X,     δ_p = dL/de_p, the gradient of the position table's rows

e_p is what the table adds to patch p, W the patch map. The identity needs one record and nothing of what lies above the sum:
neither labels nor weights, and dropout changes δ alone. X = (Δᵀ)⁺ dL/dW is unique iff the rows δ_p are independent, which
needs at most as many patches as the model is wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchSolution:
    """Patches, and how sure they are.

    Attributes:
        patches: X.
        certificate: ‖Δᵀ X − dL/dW‖ / ‖dL/dW‖.
        standard_error: of one entry of X, rms, from the residual as in linear regression; infinite if the width leaves
            no equation to spare or the rows of Δ are dependent.
    """

    patches: Float[Tensor, "patches features"]
    certificate: float
    standard_error: float


def position_rows(
    gradient: Float[Tensor, "*rows width"], mixing: Float[Tensor, "rows patches"]
) -> Float[Tensor, "patches width"] | None:
    """Δ from the gradient of the stored table, dL/dE = M Δ on the rows that follow the patches.

    Args:
        mixing: M, zero on rows of other tokens: unit vectors, or an interpolation.

    Returns:
        None if M has not as many independent rows as there are patches (a table that was interpolated upward).
    """
    stored = gradient.double().reshape(-1, gradient.shape[-1])
    used = (mixing != 0).any(dim=1)
    mixing = mixing[used]
    if mixing.shape[0] < mixing.shape[1] or int(torch.linalg.matrix_rank(mixing, rtol=1e-6)) < mixing.shape[1]:
        return None
    return torch.linalg.lstsq(mixing, stored[used], driver="gelsd").solution


def solve_patches(delta: Float[Tensor, "patches width"], gradient: Float[Tensor, "width features"]) -> PatchSolution:
    """X of least squares, of minimum norm where it is not unique."""
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    target = gradient.double()
    live = values > values[0] * 1e-14 * max(delta.shape)
    inverse = torch.where(live, 1.0 / values.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    patches = (left * inverse) @ (right @ target)
    residual = delta.double().T @ patches - target
    freedom = delta.shape[1] - delta.shape[0]
    error = math.inf
    if bool(live.all()) and freedom > 0:
        variance = float(residual.square().sum()) / (freedom * target.shape[1])
        error = math.sqrt(variance * float(inverse.square().sum()) / delta.shape[0])
    return PatchSolution(
        patches=patches,
        certificate=float(residual.norm() / target.norm().clamp_min(torch.finfo(torch.float64).tiny)),
        standard_error=error,
    )
