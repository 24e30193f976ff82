"""What is signal in a gradient can be told only against what noise its entries carry: the rounding of the number
format that they show, the steps of a quantizer, noise that a stage added, or noise that nobody announced. Here each is
read off, and a stack of gradients is brought to units in which noise has size one. Must not know models, attacks or search.

Rounding to p significant bits leaves an entry an error of its own size, N_ij ≈ 2⁻ᵖ |G_ij|. Entries of a sum of outer products
are large where a feature or an output is, so N_ij ≈ a_i b_j: dividing rows by a and columns by b makes the noise white,
and singular values of white noise end at √features + √outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.subspace.number_format import HALF, WIDEST, relative_rounding, significant_bits, smallest_step

_SCALINGS = 3
"""Alternations of row and column scales: the second changes them by a few per cent, the third by next to nothing."""
_ESTIMATES = 32
_LEVELS, _SAMPLED = 256, 4096
"""Significant bits."""


Noise = float | Float[Tensor, " features"]
"""Standard deviation per entry of a gradient, one for all or one per feature."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Whitened:
    """Gradients side by side in units of their noise.

    Attributes:
        columns: every column divided by its noise, and every row by its own scale where there is one.
        rows: relative size of the noise by feature, of mean square one; None where all features have the same.
        known: share of the noise energy whose size is known: all but that of sums in floating point.
    """

    columns: Float[Tensor, "features outputs"]
    rows: Float[Tensor, " features"] | None
    known: float

    @property
    def features(self) -> Float[Tensor, "features outputs"]:
        """The columns with every feature in its own units again: noise then differs by feature."""
        return self.columns if self.rows is None else self.columns * self.rows.unsqueeze(1)


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


def noise_in(gradient: Float[Tensor, "features outputs"]) -> float:
    """Standard deviation per entry of white noise on a matrix of low rank, from the bulk of its singular values.

    What lies below the edge σ(√features + √outputs) is taken for noise and gives the next σ, until both agree. A matrix
    of full rank has no bulk of its own; the value then is the size of its smallest directions.
    """
    g = gradient.double()
    g = g if g.shape[0] <= g.shape[1] else g.T
    columns = g.shape[1]
    squares = torch.linalg.eigvalsh(g @ g.T).clamp(min=0)
    return math.sqrt(bulk_variance(squares, columns))


def bulk_variance(squares: Float[Tensor, " rows"], columns: int) -> float:
    """The variance per entry of the noise on a matrix whose Gram matrix has these eigenvalues, as ``noise_in`` finds it."""
    rows = len(squares)
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
    return variance


def whiten(gradients: Sequence[Float[Tensor, "features outputs"]], noise_std: Sequence[Noise]) -> Whitened:
    """The gradients side by side in units of their noise: announced (``noise_std`` per entry), or of their rounding."""
    columns, relative, floor, known_energy, all_energy = [], [], [], 0.0, 0.0
    uneven = any(isinstance(told, Tensor) for told in noise_std)
    for gradient, told in zip(gradients, noise_std, strict=True):
        announced = float(told.square().mean().sqrt()) if isinstance(told, Tensor) else told
        g, bits, std = gradient.double(), significant_bits(gradient), max(announced, rounding_std(gradient))
        step = relative_rounding(bits)
        # The larger, not the sum: a quantizing stage reports the very rounding that format and zeros show.
        rounding = step * g.square().mean(dim=0).sqrt()
        least = math.hypot(std, smallest_step(gradient) / math.sqrt(12.0) if bits == HALF else 0.0)
        unknown = _dropped(g) if std == 0 else g.new_zeros(())
        noise = torch.where((g != 0).any(dim=0), rounding.clamp(min=least).maximum(unknown), std)
        live = noise > 0
        columns.append(g[:, live] / noise[live])
        relative.append(torch.full_like(noise[live], step))
        uneven = uneven or bits < WIDEST
        least_of_all = ((unknown.square() + least**2).sqrt().expand_as(noise) / noise)[live]
        by_feature = told / announced if isinstance(told, Tensor) else g.new_ones(1)
        floor.append(by_feature.to(g).unsqueeze(1) * least_of_all)
        known_energy += int(live.sum()) * std**2 if bits == WIDEST else float(noise[live].square().sum())
        all_energy += float(noise[live].square().sum())
    made, step = torch.cat(columns, dim=1), torch.cat(relative)
    rows = None
    if uneven and made.numel():
        floors = torch.cat([each.expand(len(made), -1) for each in floor], dim=1)
        rows, scale = noise_scales(torch.maximum(step * made.abs(), floors))
        made = made / rows.unsqueeze(1) / scale
    return Whitened(columns=made, rows=rows, known=known_energy / all_energy if all_energy else 0.0)


def noise_scales(
    noise: Float[Tensor, "features outputs"],
) -> tuple[Float[Tensor, " features"], Float[Tensor, " outputs"]]:
    """a and b such that (noise_ij / a_i b_j)² has mean one in every row and column, a of mean square one."""
    squares = noise.square()
    rows = squares.new_ones(len(squares))
    columns = squares.mean(dim=0)
    for _ in range(_SCALINGS):
        rows = (squares / columns).mean(dim=1)
        # A feature without any entry has no noise; it keeps a scale, to be divided by.
        rows = torch.where(rows > 0, rows, rows.max()) / rows.mean()
        columns = (squares / rows.unsqueeze(1)).mean(dim=0)
    return rows.sqrt(), columns.sqrt()


def _dropped(g: Tensor) -> Float[Tensor, " outputs"]:
    """What entries set to zero hide, per column: a share f of them below the smallest survivor τ has std τ·√(f/3).

    In an update that was not pruned the smallest entry is next to nothing, and so is this.
    """
    zero = g == 0
    if not bool(zero.any()) or bool(zero.all()):
        return g.new_zeros(g.shape[1])
    return g[~zero].abs().min() * (zero.double().mean(dim=0) / 3).sqrt()
