"""One record's patches from noisy gradients of the position table and the patch map: the most likely Δ and the posterior mean of X
under a Gaussian prior, by alternating two closed forms. Must not know models or attacks.

    G = Δᵀ X + σ_G,   D = Δ + σ_D,   s = Σ_p Δ_p + σ_s       independent errors of known variance, entry by entry
    E:  S_j = (K_j⁻¹ + Δ W_j Δᵀ)⁻¹,   x_j = m_j + S_j Δ W_j (g_j − Δᵀ m_j)
    M:  (Σ_j w_hj (x_j x_jᵀ + S_j) + diag w_Dh + w_sh 1 1ᵀ) δ_h = Σ_j w_hj x_j g_hj + w_Dh ∘ D_h + w_sh s_h 1

j counts coefficients of patches in a basis in which the prior is nearly diagonal, h the width; W and w are inverse variances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.patches.prior import PicturePrior


@dataclass(frozen=True, kw_only=True, slots=True)
class Noisy:
    """A tensor and the variance of each entry's error."""

    value: Tensor
    variance: Tensor

    def scaled(self, factor: Tensor) -> Noisy:
        return Noisy(value=self.value * factor, variance=self.variance * factor.square())


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Posterior mean of the patches, rms posterior standard deviation of an entry, and Δ."""

    patches: Float[Tensor, "patches features"]
    deviation: float
    rows: Float[Tensor, "patches width"]


def estimate_patches(
    rows: Noisy,
    gradient: Noisy,
    total: Noisy | None,
    *,
    prior: PicturePrior,
    patch: tuple[int, int],
    mean: Float[Tensor, " features"],
    rounds: int,
) -> Estimate:
    """Alternates from the released Δ.

    Args:
        rows: D, ``[patches width]``; gradient: G, ``[width features]``; total: s, ``[width]``, the gradient of the patch
            map's bias, or None.
        prior: of the pixels that G's columns are in units of; mean: what it expects of one patch.
        rounds: M steps; 0 keeps Δ as it was released.
    """
    basis, covariances = prior.components(patch)
    precisions = torch.linalg.inv(covariances)
    observed = gradient.value @ basis
    weights = 1.0 / (gradient.variance @ basis.square())
    expected = (mean @ basis).unsqueeze(1).expand(-1, len(rows.value))
    delta = rows.value
    points, spread = _posterior(delta, observed, weights, expected, precisions)
    for _ in range(rounds):
        delta = _refit(rows, total, observed, weights, points, spread)
        points, spread = _posterior(delta, observed, weights, expected, precisions)
    variance = float(spread.diagonal(dim1=1, dim2=2).mean())
    return Estimate(patches=(basis @ points).T, deviation=variance**0.5, rows=delta)


def _posterior(
    delta: Float[Tensor, "patches width"],
    observed: Float[Tensor, "width features"],
    weights: Float[Tensor, "width features"],
    expected: Float[Tensor, "features patches"],
    precisions: Float[Tensor, "features patches patches"],
) -> tuple[Float[Tensor, "features patches"], Float[Tensor, "features patches patches"]]:
    """The E step: means and covariances of every coefficient over the positions."""
    off = observed - delta.T @ expected.T
    pull = torch.einsum("ph,hj->jp", delta, weights * off)
    spread = torch.linalg.inv(precisions + torch.einsum("ph,hj,qh->jpq", delta, weights, delta))
    return expected + torch.einsum("jpq,jq->jp", spread, pull), spread


def _refit(
    rows: Noisy,
    total: Noisy | None,
    observed: Float[Tensor, "width features"],
    weights: Float[Tensor, "width features"],
    points: Float[Tensor, "features patches"],
    spread: Float[Tensor, "features patches patches"],
) -> Float[Tensor, "patches width"]:
    """The M step: Δ column by column."""
    second = points.unsqueeze(2) * points.unsqueeze(1) + spread
    own = 1.0 / rows.variance
    matrix = torch.einsum("hj,jpq->hpq", weights, second) + torch.diag_embed(own.T)
    right = torch.einsum("hj,jp->hp", weights * observed, points) + (own * rows.value).T
    if total is not None:
        weight = 1.0 / total.variance
        matrix = matrix + weight[:, None, None]
        right = right + (weight * total.value)[:, None]
    return torch.linalg.solve(matrix, right).T
