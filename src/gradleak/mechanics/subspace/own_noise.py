"""Noise whose size nobody announced is read from the gradients themselves, whatever made it: the rounding of a format that was
scaled, accumulated or averaged afterwards, of a difference of weights, or noise that was added.

Singular values of a matrix of low rank under noise consist of those of the signal and of a bulk. In units in which the noise is
white the bulk follows the law of Marchenko and Pastur; signals do not, because theirs range over decades. So units are tried, and
the law says which are right, or that there is no noise to be seen: the matrix is full of signals. Must not know number formats,
models, attacks or search.

Two guesses start: noise of one size everywhere, and noise in proportion to what is there (N_ij ∝ |G_ij| ≈ a_i b_j). Each is
improved by the scales of what lies outside the directions that stand out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.subspace.noise_level import Whitened, bulk_variance, noise_scales
from gradleak.mechanics.subspace.spectrum import noise_edge

_ROUNDS = 4
_FITS = 0.012
"""Distance to the law from which better scales are not looked for: sampling alone leaves it, in a hundred directions."""
_ACCEPTED = 0.06
"""Largest distance that is taken for noise, in many directions. Matrices full of signals show more than
.1 (``tests/mechanics/subspace/test_own_noise.py``)."""
_FEWEST = 8
"""Directions below which a law cannot be told."""
_GRID = 2001


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnNoise:
    """The noise that a stack of gradients carries by its own spectrum.

    Attributes:
        whitened: the gradients in its units.
        relative: its size in units of the entries' own, where it is in proportion to them, as rounding is; None for other noise.
        size: its root mean square over that of the gradients.
        distance: largest distance of the bulk's distribution to the law, in [0, 1].
        directions: number of directions of the bulk.
    """

    whitened: Whitened
    relative: float | None
    size: float
    distance: float
    directions: int


def own_noise(gradients: Sequence[Float[Tensor, "features outputs"]]) -> OwnNoise | None:
    """The noise of gradients side by side; None where their spectrum shows none, or too few directions of it."""
    g = torch.cat([gradient.double() for gradient in gradients], dim=1)
    g = g[:, (g != 0).any(dim=0)]
    if min(g.shape) <= _FEWEST:
        return None
    g = g / g.abs().max()
    ones = (g.new_ones(g.shape[0]), g.new_ones(g.shape[1]))
    # Both laws are tried even where the first one fits: noise of one size passes for rounding, too, and rounding then gets wrong units.
    fits = [fit for proportional in (True, False) if (fit := _improved(g, ones, proportional=proportional)) is not None]
    best = min(fits, key=lambda fit: fit.distance, default=None)
    if best is None or best.distance > _ACCEPTED + 1.0 / best.directions:
        return None
    size = best.rows.square().mean().sqrt()
    columns = g / best.rows.unsqueeze(1) / best.columns / best.std
    return OwnNoise(
        whitened=Whitened(columns=columns, rows=best.rows / size, known=1.0),
        relative=best.relative,
        size=best.std * float((best.rows.square().mean() * best.columns.square().mean() / g.square().mean()).sqrt()),
        distance=best.distance,
        directions=best.directions,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """How well the bulk fits the law in units ``rows`` × ``columns``, in which the noise has size ``std``."""

    rows: Float[Tensor, " features"]
    columns: Float[Tensor, " outputs"]
    std: float
    distance: float
    directions: int
    rest: Tensor
    relative: float | None


def _improved(g: Tensor, ones: tuple[Tensor, Tensor], *, proportional: bool) -> _Fit | None:
    scales = noise_scales(g.abs()) if proportional else ones
    best: _Fit | None = None
    relative: float | None = None
    for _ in range(_ROUNDS):
        fit = _fit(g, *scales)
        if fit is None or (best is not None and fit.distance >= best.distance):
            break
        if proportional and relative is None:
            relative = fit.std
        best = replace(fit, relative=relative)
        if fit.distance < _FITS:
            break
        scales = noise_scales(fit.rest)
    return best


def _fit(g: Tensor, rows: Tensor, columns: Tensor) -> _Fit | None:
    whitened = g / rows.unsqueeze(1) / columns
    wide = whitened if whitened.shape[0] <= whitened.shape[1] else whitened.T
    try:
        squares, vectors = torch.linalg.eigh(wide @ wide.T)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return None
    squares = squares.clamp(min=0)
    few, many = wide.shape
    variance = bulk_variance(squares, many)
    bulk = squares[squares <= variance * noise_edge(few, many) ** 2]
    signals = few - len(bulk)
    if variance <= 0 or len(bulk) <= _FEWEST or signals >= many:
        return None
    basis = vectors[:, len(bulk) :]
    rest = wide - basis @ (basis.T @ wide)
    rest = rest if wide is whitened else rest.T
    return _Fit(
        rows=rows,
        columns=columns,
        std=math.sqrt(variance),
        distance=_distance(bulk / (variance * (many - signals)), len(bulk) / (many - signals)),
        directions=len(bulk),
        rest=rest * rows.unsqueeze(1) * columns,
        relative=None,
    )


def _distance(values: Float[Tensor, " bulk"], ratio: float) -> float:
    """Largest distance between the distribution of eigenvalues and the law of Marchenko and Pastur of this ratio ≤ 1."""
    ratio = min(ratio, 1.0)
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # Substituting x = middle + half · sin(t) takes the square roots off both ends.
    t = torch.linspace(-math.pi / 2, math.pi / 2, _GRID, dtype=torch.float64, device=values.device)
    x = (low + high) / 2 + (high - low) / 2 * t.sin()
    density = t.cos().square() / x.clamp(min=1e-12)
    cumulated = torch.cat((density.new_zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)))
    cumulated = cumulated / cumulated[-1]
    place = torch.searchsorted(x, values.sort().values.clamp(low, high).contiguous()).clamp(1, _GRID - 1)
    part = ((values.sort().values.clamp(low, high) - x[place - 1]) / (x[place] - x[place - 1])).clamp(0, 1)
    law = cumulated[place - 1] + part * (cumulated[place] - cumulated[place - 1])
    own = (torch.arange(len(values), device=values.device) + 0.5) / len(values)
    return float((law - own).abs().max())
