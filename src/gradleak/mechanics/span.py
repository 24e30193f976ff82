"""Why: the weight gradient of a linear layer is G = Xᵀ D, so its column space holds the layer's inputs (rows of X).
Here is that space, cut at a rank which the numbers justify, with the residual that a member of it should show.

The cut follows from the noise (``span_noise``), the expected residual of a member from perturbation theory. What a non-member
shows is ``span_null``'s. Must not know models, attacks or search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.span_noise import Whitened, noise_in, whiten

_TINY = 1e-300
_STRUCTURAL_ZEROS = 2
"""Directions that a normalization removes from every input whatever the batch (its mean, at most one more)."""
_INPUT_ROUNDING = 2.0**-22
"""The model runs in float32 here and at the client; a different batch shape moves an activation by a few units."""
_OVERSAMPLING = 16
"""Random columns beyond the rank: the range finder misses a direction with probability below 1e-12 (Halko et al.)."""
_WORTH_SKETCHING = 0.55
"""Above this share of the features a full eigendecomposition is the cheaper way to the same space."""
_PROBES = 8
"""Fresh random columns that measure what the range finder left behind."""


@dataclass(frozen=True, kw_only=True)
class Subspace:
    """The column space of a stack of gradients that share their input.

    Attributes:
        basis: orthonormal columns ``[features rank]`` in float64.
        singular: singular values of the kept directions, in units of the noise per entry.
        spectrum: the leading singular values, in the same units; all of them where the space was decomposed in full.
        noise: standard deviation per entry of what was cut away, in the same units (near 1 if the noise is as known).
        precision: relative rounding error of the layer's input itself.
        edge: the largest singular value that noise alone has, in the same units.
    """

    basis: Float[Tensor, "features rank"]
    singular: Float[Tensor, " rank"]
    spectrum: Float[Tensor, " leading"]
    noise: float
    precision: float
    edge: float

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    @property
    def features(self) -> int:
        return self.basis.shape[0]

    @property
    def rest(self) -> int:
        """Dimensions outside the space."""
        return self.features - self.rank

    @property
    def typical(self) -> float:
        """The residual of a member that is spread evenly over the space."""
        return math.hypot(
            self.noise * math.sqrt(self.rest * float(self.singular.square().reciprocal().mean())), self.precision
        )

    @property
    def worst(self) -> float:
        """The residual of a member along the direction that noise tilts most."""
        return math.hypot(self.noise * math.sqrt(self.rest) / float(self.singular.min()), self.precision)

    @cached_property
    def complement(self) -> Float[Tensor, "features rest"]:
        """Orthonormal columns of everything outside; computed when first asked for."""
        return torch.linalg.qr(self.basis, mode="complete").Q[:, self.rank :]

    def outside(self, vectors: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """The part of each vector that the space does not hold, in float64."""
        z = vectors.double()
        return z - (z @ self.basis) @ self.basis.T

    def residual(self, vectors: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """‖(I − P) z‖ / ‖z‖: zero for a member, near sqrt(1 − rank/features) for a random direction.

        A zero vector (the embedding of a padding token) lies in every space and tells nothing: it counts as outside.
        """
        z = vectors.double()
        length = z.norm(dim=-1)
        return torch.where(length > 0, self.outside(z).norm(dim=-1) / length.clamp(min=_TINY), 1.0)

    def expected(self, vectors: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """The residual that a member shows because noise tilts the basis.

        Direction k turns by noise · sqrt(features − rank) / σ_k out of the space (first order), so a member with
        coordinates c_k keeps a residual of noise · sqrt((features − rank) Σ c_k² / σ_k²) / ‖z‖.
        """
        z = vectors.double()
        tilt = ((z @ self.basis) / self.singular).norm(dim=-1) / z.norm(dim=-1).clamp(min=_TINY)
        return (self.noise * math.sqrt(self.rest) * tilt).hypot(tilt.new_tensor(self.precision))

    def sketch(
        self, columns: int, rng: torch.Generator, *, without: Float[Tensor, " features"] | None = None
    ) -> Float[Tensor, "features columns"]:
        """``columns`` random orthonormal directions outside the space, scaled so that lengths are kept on average.

        Args:
            without: a vector that every direction is made orthogonal to as well, at the price of one dimension.
        """
        fixed = self.basis
        if without is not None:
            beyond = self.outside(without)
            if float(beyond.norm()) > _INPUT_ROUNDING * float(without.double().norm()):
                fixed = torch.cat((fixed, (beyond / beyond.norm()).unsqueeze(1)), dim=1)
        rest = self.features - fixed.shape[1]
        if columns >= rest:
            return torch.linalg.qr(fixed, mode="complete").Q[:, fixed.shape[1] :]
        mixer = torch.randn(self.features, columns, generator=rng, dtype=torch.float64).to(fixed.device)
        # Twice: one projection leaves rounding along directions that nearly cancel.
        for _ in range(2):
            mixer = mixer - fixed @ (fixed.T @ mixer)
        return torch.linalg.qr(mixer).Q * math.sqrt(rest / columns)


def column_space(
    gradients: Sequence[Float[Tensor, "features outputs"]],
    *,
    noise_std: Sequence[float],
    summands: int,
    extra_precision: float = 0.0,
) -> Subspace:
    """The column space of ``[G_1 | G_2 | ...]`` with a rank that the evidence allows.

    In units of the noise (``whiten``) noise alone has singular values below √features + √outputs. Sums of ``summands`` terms in floating point can raise the rounding part by up to
    that number (the worst case of a sum with cancellation); in this window the rank is set at the largest ratio of
    neighboring singular values.

    A randomized range finder of ``summands`` + 16 columns finds the space where it is small; where it is not, or where
    the tail is not at the floor, the Gram matrix is decomposed in full. If then no direction at all is at the floor, the
    update carries noise that nobody announced (or more tokens than the layer is wide): its size is estimated from the
    bulk of each gradient's own spectrum, and takes the place of the announced one.

    Args:
        gradients: weight gradients oriented input-first, at least one.
        noise_std: per gradient, the standard deviation per entry that known stages added.
        summands: number of rows that each entry sums over (tokens in the batch).
        extra_precision: further relative error of the inputs (drift over local steps).

    Source: Halko, Martinsson and Tropp, arXiv 0909.4061, for the range finder.
    """
    white = whiten(gradients, noise_std)
    features, outputs = white.columns.shape
    edge = math.sqrt(features) + math.sqrt(outputs)
    # Only the rounding part of the noise grows with the number of summands.
    highest = edge * (1.0 + summands * (1.0 - white.known))
    precision = math.hypot(_INPUT_ROUNDING, extra_precision)
    most = _WORTH_SKETCHING * min(features, outputs)
    # Where the number of summands allows (or is not known to exclude) a large space, a small one is still tried first.
    ladder = [summands] if summands + _OVERSAMPLING <= most else [64, 256]
    for columns in (rank + _OVERSAMPLING for rank in ladder):
        found = _sketched(white, columns, low=edge, high=highest, precision=precision) if columns <= most else None
        if found is not None:
            return found
    found = _decomposed(white, low=edge, high=highest, precision=precision)
    if int((found.spectrum <= highest).sum()) > _STRUCTURAL_ZEROS:
        return found
    estimated = [max(std, noise_in(gradient)) for gradient, std in zip(gradients, noise_std, strict=True)]
    return _decomposed(whiten(gradients, estimated), low=edge, high=edge, precision=precision)


def _sketched(white: Whitened, columns: int, *, low: float, high: float, precision: float) -> Subspace | None:
    """The space by a randomized range finder; None unless its tail shows the floor.

    The random columns come from a fixed seed: they are part of the method, and the same update gives the same space.
    """
    whitened = white.columns
    features, outputs = whitened.shape
    rng = torch.Generator().manual_seed(features * outputs + columns)
    mixer = torch.randn(outputs, columns + _PROBES, generator=rng, dtype=torch.float64).to(whitened.device)
    mixed = whitened @ mixer
    frame = torch.linalg.qr(mixed[:, :columns]).Q
    # One subspace iteration: without it the frame leans by the noise of all columns, ten times more than it must.
    frame = torch.linalg.qr(whitened @ (frame.T @ whitened).T).Q
    small = frame.T @ whitened
    values, vectors = torch.linalg.eigh(small @ small.T)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    if int((spectrum <= high).sum()) <= _STRUCTURAL_ZEROS:
        return None
    rank = _choose_rank(spectrum, low=low, high=high)
    if rank > columns - _OVERSAMPLING // 2:
        return None
    basis = frame @ vectors.flip(1)[:, :rank]
    probes = mixed[:, columns:]
    left = probes - basis @ (basis.T @ probes)
    tail = float(left.square().sum()) / _PROBES
    basis, singular = _unscaled(basis, spectrum[:rank].clamp(min=_TINY), white.rows)
    return Subspace(
        basis=basis,
        singular=singular,
        spectrum=spectrum,
        noise=math.sqrt(tail / ((features - rank) * max(1, outputs - rank))),
        precision=precision,
        edge=math.sqrt(features) + math.sqrt(outputs),
    )


def _decomposed(white: Whitened, *, low: float, high: float, precision: float) -> Subspace:
    features, outputs = white.columns.shape
    values, vectors = torch.linalg.eigh(white.columns @ white.columns.T)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    rank = _choose_rank(spectrum, low=low, high=high)
    rest = features - rank
    tail = float(spectrum[rank:].square().sum())
    noise = math.sqrt(tail / (rest * max(1, outputs - rank))) if rest and outputs > rank else 1.0
    basis, singular = _unscaled(vectors.flip(1)[:, :rank], spectrum[:rank].clamp(min=_TINY), white.rows)
    return Subspace(
        basis=basis,
        singular=singular,
        spectrum=spectrum,
        noise=noise,
        precision=precision,
        edge=math.sqrt(features) + math.sqrt(outputs),
    )


def _unscaled(
    basis: Float[Tensor, "features rank"], singular: Float[Tensor, " rank"], rows: Float[Tensor, " features"] | None
) -> tuple[Float[Tensor, "features rank"], Float[Tensor, " rank"]]:
    """The space of the inputs themselves from that of inputs divided by ``rows``.

    With U and σ of the latter, noise moves a member z by a ∘ e, e white of size ‖diag(1/σ) Uᵀ(z / a)‖. The space is that of
    a ∘ U = B R, so this size is ‖diag(1/σ) R⁻¹ Bᵀz‖: the singular value decomposition of that matrix gives directions that
    tilt independently; and outside the space a ∘ e has the energy tr((I − BBᵀ) diag(a²)) in place of features − rank.
    """
    if rows is None:
        return basis, singular
    frame, triangle = torch.linalg.qr(rows.unsqueeze(1) * basis)
    tilt = torch.linalg.solve_triangular(triangle, torch.diag(1.0 / singular), upper=True, left=False)
    _, sizes, mixed = torch.linalg.svd(tilt)
    squares = rows.square()
    outside = float(squares.sum() - squares @ frame.square().sum(dim=1)) / max(1, frame.shape[0] - frame.shape[1])
    return frame @ mixed.flip(0).T, 1.0 / (sizes.flip(0) * math.sqrt(max(outside, 0.0))).clamp(min=_TINY)


def _choose_rank(spectrum: Tensor, *, low: float, high: float) -> int:
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
