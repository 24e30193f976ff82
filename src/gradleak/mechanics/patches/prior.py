"""What is believed of photographs before any update is seen: neighboring pixels and the colors of one pixel are alike. One
Gaussian with a covariance in three factors, so that it costs nothing at any size. Must not know updates or attacks.

    x ~ N(mean, std² · C ⊗ R(height) ⊗ R(width)),   R_ij = exp(−|i − j| / length),   C = (1 − color) I + color
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

MEAN, STD = 0.42, 0.32
LENGTH = 0.36
COLOR = 0.83


@dataclass(frozen=True, kw_only=True, slots=True)
class PicturePrior:
    """A Gaussian over pictures in [0, 1].

    Attributes:
        shape: channels, height and width.
        mean, std: of a pixel.
        length: distance in pixels over which the correlation falls by the factor e; in units of the longer side by default
            (``for_shape``), because photographs look alike at every scale.
        color: correlation of two channels of one pixel.

    Source: exponential correlations are the usual first-order model of images; the constants are those of two photographs of
        scikit-learn (``benchmarks/images/prior_constants.py``).
    """

    shape: tuple[int, int, int]
    length: float
    mean: float = MEAN
    std: float = STD
    color: float = COLOR

    @staticmethod
    def for_shape(shape: tuple[int, int, int]) -> PicturePrior:
        """The prior of photographs that were scaled to this shape."""
        return PicturePrior(shape=shape, length=LENGTH * max(shape[1:]))

    def colored(self, white: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Pictures (deviations from the mean) of independent standard numbers; a linear map with the prior as its square."""
        channels, rows, columns = (torch.linalg.cholesky(covariance).to(white.dtype) for covariance in self.factors())
        return self.std * torch.einsum("ac,hi,wj,bcij->bahw", channels, rows, columns, white)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """C, R(height) and R(width), float64."""
        channels, height, width = self.shape
        color = torch.full((channels, channels), self.color, dtype=torch.float64)
        return color.fill_diagonal_(1.0), self._decay(height), self._decay(width)

    def patch_covariance(self, patch: tuple[int, int]) -> Float[Tensor, "features features"]:
        """Covariance of one patch, entries in the order of ``PatchEmbedding.to_patches``."""
        color = self.factors()[0]
        inside = torch.kron(self._decay(patch[0]), self._decay(patch[1]))
        return self.std**2 * torch.kron(color, inside)

    def components(
        self, patch: tuple[int, int]
    ) -> tuple[Float[Tensor, "features features"], Float[Tensor, "features patches patches"]]:
        """An orthonormal basis of patches in which the prior is nearly diagonal, and each coefficient's covariance over positions.

        Returns:
            Basis in columns, and one covariance per column.
        """
        color, rows, columns = self.factors()
        bases = [torch.linalg.eigh(covariance) for covariance in (color, self._decay(patch[0]), self._decay(patch[1]))]
        basis = torch.kron(bases[0].eigenvectors, torch.kron(bases[1].eigenvectors, bases[2].eigenvectors))
        down = _between_patches(rows, bases[1].eigenvectors)
        across = _between_patches(columns, bases[2].eigenvectors)
        per_color = bases[0].eigenvalues
        joint = torch.einsum("c,apq,brs->cabprqs", per_color, down, across)
        many = down.shape[1] * across.shape[1]
        return basis, self.std**2 * joint.reshape(basis.shape[1], many, many)

    def _decay(self, count: int) -> Float[Tensor, "count count"]:
        places = torch.arange(count, dtype=torch.float64)
        return torch.exp(-(places[:, None] - places[None, :]).abs() / self.length)


def _between_patches(
    full: Float[Tensor, "pixels pixels"], vectors: Float[Tensor, "inside inside"]
) -> Float[Tensor, "inside blocks blocks"]:
    """vᵀ R_pq v for every column v and every pair of blocks p, q of the line; what no block covers is left out."""
    inside = len(vectors)
    blocks = len(full) // inside
    cut = full[: blocks * inside, : blocks * inside].reshape(blocks, inside, blocks, inside)
    return torch.einsum("ia,piqj,ja->apq", vectors, cut, vectors)
