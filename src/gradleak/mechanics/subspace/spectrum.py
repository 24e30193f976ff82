"""The directions that a gradient in units of its noise holds can be had at three prices: from a few random sums of its
outputs where they are clear, by a randomized range finder where they are few, from the Gram matrix otherwise. Here are the
three, and the rank that the singular values allow. Must not know number formats, models, attacks or search.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

OVERSAMPLING = 16
"""Random columns beyond the rank: they miss a direction with probability below 1e-12 (Halko et al.)."""
_FILLED = 0.8
"""Share of a few random columns that the rank may take up: beyond, a direction stands out ten times less than it could."""
_STRUCTURAL_ZEROS = 2
"""Directions that a normalization removes from every input whatever the batch (its mean, at most one more)."""
_ENTRIES = 8
"""Random columns that each output is added to (Martinsson and Tropp's advice for sparse sign embeddings)."""
_PROBES = 8
"""Random columns that measure what the range finder left behind."""
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True, slots=True)
class Leading:
    """The directions that stand out.

    Attributes:
        basis: orthonormal columns, strongest first; ``singular``: their singular values, in units of the noise per entry.
        spectrum: all singular values that were computed.
        noise: standard deviation per entry of the rest, in the same units.
        edge: the largest singular value that noise alone has in as many outputs as were looked at.
    """

    basis: Float[Tensor, "features rank"]
    singular: Float[Tensor, " rank"]
    spectrum: Float[Tensor, " leading"]
    noise: float
    edge: float

    @property
    def worst(self) -> float:
        """Residual of a member along the direction that noise tilts most, to first order."""
        features, rank = self.basis.shape
        return self.noise * math.sqrt(features - rank) / float(self.singular.min())

    def ends(self, highest: float) -> bool:
        """Whether some of the spectrum lies below ``highest``, beyond the zeros that every batch has."""
        return int((self.spectrum <= highest).sum()) > _STRUCTURAL_ZEROS


def noise_edge(features: int, outputs: int) -> float:
    """The largest singular value of white noise of size one."""
    return math.sqrt(features) + math.sqrt(outputs)


def room(columns: int) -> int:
    """The largest rank that ``columns`` random sums can show."""
    return min(int(_FILLED * columns), columns - OVERSAMPLING)


def from_sums(gradient: Float[Tensor, "features outputs"], columns: int, *, spread: float) -> Leading | None:
    """The directions that a few random sums of the outputs show; None where they fill them.

    Y = W Ω is itself a sum of inputs times (random) errors under white noise of size one: all that holds of W holds of Y, with
    ``columns`` outputs in the place of all. On average a direction stands out √outputs / (√columns − √rank) times less.
    """
    features, outputs = gradient.shape
    made = _sums(gradient, columns)
    values, vectors = torch.linalg.eigh(made.T @ made)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    edge = noise_edge(features, columns)
    rank = choose_rank(spectrum, low=edge, high=edge * spread)
    if rank > room(columns):
        return None
    # Of every sum a share rank / outputs falls to the directions found, where noise does not show.
    shown = (features - rank) * (columns - rank) * (1.0 - rank / outputs)
    rest = float(spectrum[rank:].square().sum()) / shown
    basis = torch.linalg.qr(made @ (vectors.flip(1)[:, :rank] / spectrum[:rank])).Q
    return Leading(basis=basis, singular=spectrum[:rank], spectrum=spectrum, noise=math.sqrt(rest), edge=edge)


def from_range(gradient: Float[Tensor, "features outputs"], columns: int, *, spread: float) -> Leading | None:
    """The directions by a randomized range finder; None unless its tail shows the floor."""
    features, outputs = gradient.shape
    mixed = _sums(gradient, columns + _PROBES)
    frame = torch.linalg.qr(mixed[:, :columns]).Q
    # One subspace iteration: without it the frame leans by the noise of all columns, ten times more than it must.
    frame = torch.linalg.qr(gradient @ (frame.T @ gradient).T).Q
    small = frame.T @ gradient
    values, vectors = torch.linalg.eigh(small @ small.T)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    edge = noise_edge(features, outputs)
    rank = choose_rank(spectrum, low=edge, high=edge * spread)
    if rank > columns - OVERSAMPLING // 2 or int((spectrum <= edge * spread).sum()) <= _STRUCTURAL_ZEROS:
        return None
    basis = frame @ vectors.flip(1)[:, :rank]
    probes = mixed[:, columns:]
    left = (probes - basis @ (basis.T @ probes)).square().sum() / _PROBES
    # A sum has the length of one output on average, and the rest of the noise has outputs − rank dimensions of them.
    rest = float(left) * outputs / ((features - rank) * max(1, outputs - rank))
    return Leading(
        basis=basis,
        singular=spectrum[:rank].clamp(min=_TINY),
        spectrum=spectrum,
        noise=math.sqrt(rest),
        edge=edge,
    )


def from_gram(gradient: Float[Tensor, "features outputs"], *, spread: float) -> Leading:
    """The directions by an eigendecomposition in full."""
    features, outputs = gradient.shape
    values, vectors = torch.linalg.eigh(gradient @ gradient.T)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    edge = noise_edge(features, outputs)
    rank = choose_rank(spectrum, low=edge, high=edge * spread)
    rest, tail = features - rank, float(spectrum[rank:].square().sum())
    return Leading(
        basis=vectors.flip(1)[:, :rank],
        singular=spectrum[:rank].clamp(min=_TINY),
        spectrum=spectrum,
        noise=math.sqrt(tail / (rest * max(1, outputs - rank))) if rest and outputs > rank else 1.0,
        edge=edge,
    )


def choose_rank(spectrum: Float[Tensor, " leading"], *, low: float, high: float) -> int:
    """The rank between ``#{σ > high}`` and ``#{σ > low}`` that ends at the largest ratio of neighbors.

    Values below ``low`` count as ``low``: directions that the layer's input never has (LayerNorm removes one) are zero
    up to nothing, and the drop to them says nothing about the batch.
    """
    fewest = max(1, int((spectrum > high).sum()))
    most = int((spectrum > low).sum())
    if most <= fewest:
        return max(most, 1)
    logs = torch.cat((spectrum, spectrum.new_zeros(1))).clamp(min=low).log()
    gaps = logs[fewest - 1 : most] - logs[fewest : most + 1]
    return fewest + int(gaps.argmax())


def _sums(gradient: Float[Tensor, "features outputs"], columns: int) -> Float[Tensor, "features columns"]:
    """W Ω, Ω a sparse matrix of signs whose columns have unit length on average.

    The signs come from a fixed seed: they are part of the method, and the same update gives the same space.
    """
    features, outputs = gradient.shape
    rng = torch.Generator().manual_seed(features * outputs + columns)
    made = gradient.new_zeros(features, 2 * columns)
    for _ in range(_ENTRIES):
        # The second half of the columns is subtracted: a random sign.
        made.index_add_(1, torch.randint(2 * columns, (outputs,), generator=rng).to(made.device), gradient)
    return (made[:, :columns] - made[:, columns:]) * math.sqrt(columns / (_ENTRIES * outputs))
