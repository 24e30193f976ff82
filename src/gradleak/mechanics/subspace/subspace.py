"""The weight gradient of a linear layer is G = Xᵀ D, so its column space holds the layer's inputs (rows of X).
Here is that space, cut at a rank which the numbers justify, with the residual that a member of it should show.

The cut follows from the noise (``mechanics/subspace/noise_level.py``), the expected residual of a member from perturbation theory. What a non-member
shows is ``mechanics/subspace/null_laws.py``'s. Must not know models, attacks or search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.subspace.frames import complement, outside
from gradleak.mechanics.subspace.noise_level import Noise, Whitened, noise_in, whiten
from gradleak.mechanics.subspace.own_noise import own_noise
from gradleak.mechanics.subspace.spectrum import OVERSAMPLING, Leading, from_gram, from_range, from_sums, room

_TINY = 1e-300
INPUT_ROUNDING = 2.0**-22
"""The model runs in float32 here and at the client; a different batch shape moves an activation by a few units."""
_LADDER = (0.125, 0.42)
"""Random sums of the outputs, as shares of the features, that are tried in turn: cheap beside the Gram matrix, at half its price."""
_CLEAR = 1e-3
"""Residual of any member below which random sums tell as much as all outputs: strangers show a hundred times more."""
_NARROW = 0.35
"""Share of the features up to which the range finder is the cheaper way; above, the Gram matrix is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaled:
    """The same space where every feature is divided by the size of its noise, which is white there.

    Attributes:
        basis, singular: as those of the space, of scaled inputs; rows: the sizes, of mean square one.
    """

    basis: Float[Tensor, "features rank"]
    singular: Float[Tensor, " rank"]
    rows: Float[Tensor, " features"]


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
        inputs: number of directions that the layer's inputs are seen to have: the rank, unless the space is one that they
            merely lie in.
        scaled: the space in units in which noise is white, where noise differs by feature.
        guessed: whether the size of the noise was read from the spectrum. A space that is full looks the same, unless
            ``noisy``: what was cut away follows the law of noise.
        relative_noise: size of noise in proportion to the entries that was read from the spectrum; 0 where none was.
    """

    basis: Float[Tensor, "features rank"]
    singular: Float[Tensor, " rank"]
    spectrum: Float[Tensor, " leading"]
    noise: float
    precision: float
    edge: float
    inputs: int
    scaled: Scaled | None = None
    guessed: bool = False
    noisy: bool = False
    relative_noise: float = 0.0

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
        return math.hypot(self.blur, self.precision)

    @property
    def blur(self) -> float:
        """What of it noise makes, by tilting the space."""
        return self.noise * math.sqrt(self.rest * float(self.singular.square().reciprocal().mean()))

    @property
    def worst(self) -> float:
        """The residual of a member along the direction that noise tilts most."""
        return math.hypot(self.noise * math.sqrt(self.rest) / float(self.singular.min()), self.precision)

    @cached_property
    def complement(self) -> Float[Tensor, "features rest"]:
        """Orthonormal columns of everything outside; computed when first asked for."""
        return complement(self.basis)

    def with_mismatch(self, relative: float) -> Subspace:
        """The same space where members were measured at another place than they are computed, by so much of their length.

        What is with_mismatch from a member has any direction, so that the share of the space's outside of it shows.
        """
        shown = relative * math.sqrt(self.rest / self.features)
        return replace(self, precision=math.hypot(self.precision, shown)) if relative else self

    def outside(self, vectors: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """The part of each vector that the space does not hold, in float64."""
        return outside(vectors.double(), self.basis)

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
            if float(beyond.norm()) > INPUT_ROUNDING * float(without.double().norm()):
                fixed = torch.cat((fixed, (beyond / beyond.norm()).unsqueeze(1)), dim=1)
        rest = self.features - fixed.shape[1]
        if columns >= rest:
            return complement(fixed)
        mixer = torch.randn(self.features, columns, generator=rng, dtype=torch.float64).to(fixed.device)
        # Twice: one projection leaves rounding along directions that nearly cancel.
        for _ in range(2):
            mixer = mixer - fixed @ (fixed.T @ mixer)
        return torch.linalg.qr(mixer).Q * math.sqrt(rest / columns)


def column_space(
    gradients: Sequence[Float[Tensor, "features outputs"]],
    *,
    noise_std: Sequence[Noise],
    summands: int,
    expected_rank: int = 0,
) -> Subspace:
    """The column space of ``[G_1 | G_2 | ...]`` with a rank that the evidence allows.

    In units of the noise (``whiten``) noise alone has singular values below √features + √outputs. Sums of ``summands`` terms in floating point can raise the rounding part by up to
    that number (the worst case of a sum with cancellation); in this window the rank is set at the largest ratio of
    neighboring singular values.

    A few random sums of the outputs come first (``mechanics/subspace/spectrum.py``): where no member shows a residual worth mentioning in what
    they span, that is the answer. Otherwise all outputs are used. If then no direction at all is at the floor, or
    more than half are left in, the update carries noise that nobody announced (or more tokens than the layer is wide): where the spectrum
    follows the law of noise (``own_noise``) it tells which, and takes the place of the announced one. Else the size of white noise is
    estimated from the bulk of each gradient's own spectrum.

    Args:
        gradients: weight gradients oriented input-first, at least one.
        noise_std: per gradient, the standard deviation per entry that known stages added, one for all or one per feature.
        summands: number of rows that each entry sums over (tokens in the batch).
        expected_rank: where the search for the rank starts; it costs time if wrong, and nothing else.

    Source: Halko, Martinsson and Tropp, arXiv 0909.4061, for the range finder; Martinsson and Tropp, arXiv 2002.01387,
        for sparse sign embeddings.
    """
    white = whiten(gradients, noise_std)
    # Only the rounding part of the noise grows with the number of summands.
    spread = 1.0 + summands * (1.0 - white.known)
    found = _leading(white.columns, summands=summands, spread=spread, expected_rank=expected_rank)
    ends = found.ends(found.edge * spread)
    if ends and 2 * found.basis.shape[1] < len(found.basis):
        return _space(found, white)
    own = own_noise(gradients)
    if own is not None:
        space = _space(from_gram(own.whitened.columns, spread=1.0), own.whitened)
        return replace(space, guessed=True, noisy=True, relative_noise=own.relative or 0.0)
    if ends:
        return _space(found, white)
    estimated = [
        std if isinstance(std, Tensor) else max(std, noise_in(gradient))
        for gradient, std in zip(gradients, noise_std, strict=True)
    ]
    white = whiten(gradients, estimated)
    return replace(_space(from_gram(white.columns, spread=1.0), white), guessed=True)


def thin_space(
    gradients: Sequence[Float[Tensor, "features outputs"]], *, noise_std: Sequence[Noise], summands: int
) -> Subspace:
    """The same for few columns, or few features: to have them all in use is no sign of noise there, and noise that nobody
    announced is not looked for."""
    white = whiten(gradients, noise_std)
    return _space(from_gram(white.columns, spread=1.0 + summands * (1.0 - white.known)), white)


def _space(found: Leading, white: Whitened) -> Subspace:
    basis, singular = _unscaled(found.basis, found.singular, white.rows)
    return Subspace(
        basis=basis,
        singular=singular,
        spectrum=found.spectrum,
        noise=found.noise,
        precision=INPUT_ROUNDING,
        edge=found.edge,
        inputs=basis.shape[1],
        scaled=None if white.rows is None else Scaled(basis=found.basis, singular=found.singular, rows=white.rows),
    )


def _leading(
    gradient: Float[Tensor, "features outputs"], *, summands: int, spread: float, expected_rank: int
) -> Leading:
    features, outputs = gradient.shape
    rank = summands
    for columns in (int(share * features) for share in _LADDER):
        if columns >= outputs or room(columns) < max(1, expected_rank):
            continue
        found = from_sums(gradient, columns, spread=spread)
        if found is not None and found.worst < _CLEAR:
            return found
        if found is not None or room(columns) >= summands:
            rank = summands if found is None else found.basis.shape[1]
            break
    few = rank + 2 * OVERSAMPLING
    found = from_range(gradient, few, spread=spread) if few <= _NARROW * min(features, outputs) else None
    return from_gram(gradient, spread=spread) if found is None else found


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
