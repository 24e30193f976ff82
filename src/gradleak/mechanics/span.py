"""Why: the weight gradient of a linear layer is G = Xᵀ D, so its column space holds the layer's inputs (rows of X).
Here is that space, cut at a rank which the numbers justify, with the residual that a member of it should show.

The cut follows from the number format and from the noise that the stages are known to add; the expected residual of a
member from perturbation theory. What a non-member shows is ``span_null``'s. Must not know models, attacks or search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-300
_STRUCTURAL_ZEROS = 2
"""Directions that a normalization removes from every input whatever the batch (its mean, at most one more)."""
_INPUT_ROUNDING = 2.0**-22
"""The model runs in float32 here and at the client; a different batch shape moves an activation by a few units."""
_ROUNDING_STD = 0.4247
"""Rounding to p significant bits adds 2⁻ᵖ / (2 √ln 4) of a tensor's rms per entry (uniform error, log-uniform significands)."""
_OVERSAMPLING = 16
"""Random columns beyond the rank: the range finder misses a direction with probability below 1e-12 (Halko et al.)."""
_WORTH_SKETCHING = 0.55
"""Above this share of the features a full eigendecomposition is the cheaper way to the same space."""
_ESTIMATES = 32
_LEVELS, _SAMPLED = 256, 4096
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
    """

    basis: Float[Tensor, "features rank"]
    singular: Float[Tensor, " rank"]
    spectrum: Float[Tensor, " leading"]
    noise: float
    precision: float

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


def significant_bits(tensor: Tensor) -> int:
    """Bits of the narrowest usual number format that holds every entry exactly: 8 (bf16), 11 (fp16), 24 or 53."""
    if tensor.dtype == torch.float64:
        return 53
    few = tensor.flatten()[:_SAMPLED]
    for dtype, bits in ((torch.bfloat16, 8), (torch.float16, 11)):
        if all(bool((part.to(dtype).to(part.dtype) == part).all()) for part in (few, tensor)):
            return bits
    return 24


def rounding_std(tensor: Tensor) -> float:
    """What rounding to a few equidistant levels added per entry: step / √12, or 0 where there are no such levels.

    A tensor of at most 256 different values that are multiples of one step was quantized to eight bits or fewer.
    """
    few = tensor.flatten()[:_SAMPLED].unique()
    if len(few) > _LEVELS:
        return 0.0
    levels = tensor.unique().double()
    if len(levels) > _LEVELS or len(levels) < 3:
        return 0.0
    step = float(levels.diff().min())
    offsets = (levels / step - (levels / step).round()).abs()
    return step / math.sqrt(12.0) if float(offsets.max()) < 0.01 else 0.0


def column_space(
    gradients: Sequence[Float[Tensor, "features outputs"]],
    *,
    noise_std: Sequence[float],
    summands: int,
    extra_precision: float = 0.0,
) -> Subspace:
    """The column space of ``[G_1 | G_2 | ...]`` with a rank that the evidence allows.

    Every column is divided by its own noise (stage noise or rounding, whichever is larger), so noise alone has singular
    values below √features + √outputs. Sums of ``summands`` terms in floating point can raise the rounding part by up to
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
    noise_std = [max(std, rounding_std(gradient)) for gradient, std in zip(gradients, noise_std, strict=True)]
    whitened, stage_share = _whiten(gradients, noise_std)
    features, outputs = whitened.shape
    edge = math.sqrt(features) + math.sqrt(outputs)
    # Only the rounding part of the noise grows with the number of summands.
    highest = edge * (1.0 + summands * (1.0 - stage_share))
    precision = math.hypot(_INPUT_ROUNDING, extra_precision)
    most = _WORTH_SKETCHING * min(features, outputs)
    # Where the number of summands allows (or is not known to exclude) a large space, a small one is still tried first.
    ladder = [summands] if summands + _OVERSAMPLING <= most else [64, 256]
    for columns in (rank + _OVERSAMPLING for rank in ladder):
        found = _sketched(whitened, columns, low=edge, high=highest, precision=precision) if columns <= most else None
        if found is not None:
            return found
    found = _decomposed(whitened, low=edge, high=highest, precision=precision)
    if int((found.spectrum <= highest).sum()) > _STRUCTURAL_ZEROS:
        return found
    estimated = [max(std, noise_in(gradient)) for gradient, std in zip(gradients, noise_std, strict=True)]
    whitened, _ = _whiten(gradients, estimated)
    return _decomposed(whitened, low=edge, high=edge, precision=precision)


def noise_in(gradient: Float[Tensor, "features outputs"]) -> float:
    """Standard deviation per entry of white noise on a matrix of low rank, from the bulk of its singular values.

    What lies below the edge σ(√features + √outputs) is taken for noise and gives the next σ, until both agree. A matrix
    of full rank has no bulk of its own; the value then is the size of its smallest directions.
    """
    g = gradient.double()
    g = g if g.shape[0] <= g.shape[1] else g.T
    rows, columns = g.shape
    squares = torch.linalg.eigvalsh(g @ g.T).clamp(min=0)
    edge = (math.sqrt(rows) + math.sqrt(columns)) ** 2
    variance = float(squares.median()) / columns
    for _ in range(_ESTIMATES):
        bulk = squares[squares <= variance * edge]
        if not len(bulk):
            break
        signals = rows - len(bulk)
        updated = float(bulk.sum()) / (len(bulk) * max(1, columns - signals))
        if math.isclose(updated, variance, rel_tol=1e-6):
            break
        variance = updated
    return math.sqrt(variance)


def whiten(
    gradients: Sequence[Float[Tensor, "features outputs"]], noise_std: Sequence[float]
) -> Float[Tensor, "features columns"]:
    """The gradients side by side, every column in units of its noise: announced, or of its rounding."""
    return _whiten(gradients, [max(std, rounding_std(g)) for g, std in zip(gradients, noise_std, strict=True)])[0]


def _sketched(whitened: Tensor, columns: int, *, low: float, high: float, precision: float) -> Subspace | None:
    """The space by a randomized range finder; None unless its tail shows the floor.

    The random columns come from a fixed seed: they are part of the method, and the same update gives the same space.
    """
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
    return Subspace(
        basis=basis,
        singular=spectrum[:rank].clamp(min=_TINY),
        spectrum=spectrum,
        noise=math.sqrt(tail / ((features - rank) * max(1, outputs - rank))),
        precision=precision,
    )


def _decomposed(whitened: Tensor, *, low: float, high: float, precision: float) -> Subspace:
    features, outputs = whitened.shape
    values, vectors = torch.linalg.eigh(whitened @ whitened.T)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    rank = _choose_rank(spectrum, low=low, high=high)
    rest = features - rank
    tail = float(spectrum[rank:].square().sum())
    noise = math.sqrt(tail / (rest * max(1, outputs - rank))) if rest and outputs > rank else 1.0
    return Subspace(
        basis=vectors.flip(1)[:, :rank],
        singular=spectrum[:rank].clamp(min=_TINY),
        spectrum=spectrum,
        noise=noise,
        precision=precision,
    )


def _whiten(gradients: Sequence[Tensor], noise_std: Sequence[float]) -> tuple[Tensor, float]:
    """Columns in units of their noise, and the share of the noise energy that comes from stages."""
    columns, stage_energy, all_energy = [], 0.0, 0.0
    for gradient, std in zip(gradients, noise_std, strict=True):
        g = gradient.double()
        step = _ROUNDING_STD * 2.0 ** -significant_bits(gradient)
        # The larger, not the sum: a quantizing stage reports the very rounding that format and zeros show.
        rounding = step * g.square().mean(dim=0).sqrt()
        unknown = _dropped(g) if std == 0 else g.new_zeros(())
        noise = torch.where((g != 0).any(dim=0), rounding.clamp(min=std).maximum(unknown), std)
        live = noise > 0
        columns.append(g[:, live] / noise[live])
        stage_energy += int(live.sum()) * std**2
        all_energy += float(noise[live].square().sum())
    return torch.cat(columns, dim=1), stage_energy / all_energy if all_energy else 0.0


def _dropped(g: Tensor) -> Float[Tensor, " outputs"]:
    """What entries set to zero hide, per column: a share f of them below the smallest survivor τ has std τ·√(f/3).

    In an update that was not pruned the smallest entry is next to nothing, and so is this.
    """
    zero = g == 0
    if not bool(zero.any()) or bool(zero.all()):
        return g.new_zeros(g.shape[1])
    return g[~zero].abs().min() * (zero.double().mean(dim=0) / 3).sqrt()


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
