"""Evidence of sums over unknown tokens can be compared and added only in units in which tokens that do not take part
are noise of unit size. Must not know where the sums come from nor how tokens are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_WHITEN_FROM = 4
"""Rows per column from which the columns' own covariance is known well enough to divide by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class White:
    """A family of sums in units in which features of the vocabulary and coefficients have unit covariance.

    Attributes:
        freedom: number of independent columns that the coefficients have.
    """

    weights: Float[Tensor, "sums rows features"]
    offsets: Float[Tensor, "sums rows"]
    sums: Float[Tensor, "sums rows columns"]
    own: Float[Tensor, "columns features"] | None
    freedom: float

    @property
    def rows(self) -> int:
        return self.sums.shape[1]

    def features(self, z: Float[Tensor, "pairs features"]) -> Float[Tensor, "sums pairs rows"]:
        """Unit vectors, in float64."""
        vectors = (torch.einsum("jrf,pf->jpr", self.weights, z) + self.offsets.unsqueeze(1)).double()
        return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-30)

    def own_directions(self, z: Float[Tensor, "pairs features"]) -> Float[Tensor, "pairs columns"] | None:
        """Unit vectors, in float64."""
        if self.own is None:
            return None
        vectors = (z @ self.own.T).double()
        return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-30)


def whiten(
    weights: Float[Tensor, "sums rows features"],
    offsets: Float[Tensor, "sums rows"],
    sums: Float[Tensor, "sums rows columns"],
    own: Float[Tensor, "columns features"] | None,
    centered: bool,
    z: Float[Tensor, "samples features"],
) -> White:
    """A family (see ``bag.Family``) measured by what samples of the vocabulary would make."""
    # An update may come in half precision; what the model reads does not.
    features = torch.einsum("jrf,pf->jpr", weights.to(z.dtype), z) + offsets.to(z.dtype).unsqueeze(1)
    mean = features.mean(dim=1).double()
    spread = features.double() - mean.unsqueeze(1)
    left = _inverse_root(spread.transpose(1, 2) @ spread / len(z))
    whole = left @ sums.double()
    if not centered:
        # The vocabulary's mean takes part with every token: what it adds says nothing about any.
        common = torch.nn.functional.normalize((left @ mean.unsqueeze(2)), dim=1)
        whole = whole - common @ (common.transpose(1, 2) @ whole)
    whole = whole / whole.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-300)
    columns = whole.shape[2]
    covariance = torch.einsum("jrc,jrd->cd", whole, whole) / (whole.shape[0] * whole.shape[1])
    values = torch.linalg.eigvalsh(covariance)
    freedom = float(values.sum().square() / values.square().sum())
    if whole.shape[0] * whole.shape[1] >= _WHITEN_FROM * columns:
        right = _inverse_root(covariance)
        whole, freedom = whole @ right, float((values > 1e-9 * values[-1]).sum())
        own = None if own is None else right.to(own.dtype) @ own
    return White(
        weights=(left @ weights.double()).to(z.dtype),
        offsets=(left @ (offsets.double() - mean).unsqueeze(2)).squeeze(2).to(z.dtype),
        sums=whole / whole.square().sum(dim=(1, 2), keepdim=True).div(whole.shape[1] * freedom).sqrt(),
        own=own,
        freedom=freedom,
    )


def _inverse_root(covariance: Float[Tensor, "*sums rows rows"]) -> Float[Tensor, "*sums rows rows"]:
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[..., -1:].clamp(min=1e-300) * 1e-6
    return (vectors * values.maximum(floor).rsqrt().unsqueeze(-2)) @ vectors.transpose(-1, -2)
