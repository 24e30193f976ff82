"""A client that shares only its largest entries leaves zeros whose values are unknown. The gradient of a layer that read n tokens
has rank n, so the entries that survive determine the others where there are enough of them: more than n in each row and column, and
more than n (rows + columns − n) together. Here is that completion, with the error that it shows on survivors which it was not
fitted to. Must not know models, attacks or search.

    G = U Vᵀ on the surviving entries: U given V is one least-squares problem per row, V given U one per column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.mechanics.subspace.noise_level import rounding_std
from gradleak.mechanics.subspace.number_format import HALF, significant_bits
from gradleak.mechanics.subspace.spectrum import noise_edge
from gradleak.mechanics.subspace.subspace import Subspace, thin_space

_EDGE_ENTRIES = 20
"""Entries below twice the smallest: where nothing was left out, k of them are as likely as 2⁻ᵏ, as their density has no gap at zero."""
_OVERSAMPLING = 1.25
"""Survivors of the block that is completed first, as a multiple of the numbers that its rank leaves free."""
_ROOM = 1.5
"""Rank that the block should determine by count, as a multiple of the tokens: then few sweeps are needed."""
_PER_LINE = 1.1
"""Survivors of a row or column that is solved for, as a multiple of the rank."""
_HELD = 0.04
"""Share of survivors that are not fitted but tell the error."""
_LARGEST = 640
"""Rows and columns of the first block, at most: each one outside follows from it by one least-squares problem."""
_SIZES = 14
_SWEEPS, _CUTS, _FAILURES = 200, 4, 3
_GROWTH = 8
"""The rank grows by this part of itself, by half of that after a failure."""
_STALLED, _SLOW = 0.9, 0.98
"""Ratio of errors two sweeps apart from which more of them are not worth while, on the way and at a rank that a gap suggests."""
_LOST = 10.0
"""Ratio of errors from which a cut has taken directions of the matrix itself."""
_FLOOR = 2.0**-21
"""Relative error that the rounding of float32 sums leaves."""
_RIDGE = 1e-13
_CLEAR = 30.0
"""Ratio of a stranger's residual to a member's from which noise has hidden no direction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """A gradient of low rank from the entries that survived.

    Attributes:
        rows: features that are determined; ``left``: U on them, V having orthonormal columns.
        noise: standard deviation per entry of the error of U, by row, as survivors show that were not fitted.
    """

    rows: Int64[Tensor, " rows"]
    left: Float[Tensor, "rows rank"]
    noise: Float[Tensor, " rows"]

    def space(self, features: int) -> Subspace:
        """The column space. Of a feature that is not determined nothing is known, so its axis belongs to the space."""
        known = thin_space([self.left], noise_std=[self.noise], summands=0)
        others = self.rows.new_ones(features, dtype=torch.bool)
        others[self.rows] = False
        axes = torch.eye(features, dtype=torch.float64, device=others.device)[:, others]
        basis = axes.new_zeros(features, known.rank)
        basis[self.rows] = known.basis
        return replace(
            known,
            basis=torch.cat((basis, axes), dim=1),
            singular=torch.cat((known.singular, known.singular.new_full((axes.shape[1],), math.inf))),
            inputs=known.rank,
            edge=noise_edge(features, known.rank),
            scaled=None if axes.shape[1] else known.scaled,
        )


def is_pruned(gradient: Float[Tensor, "features outputs"]) -> bool:
    """Whether zeros stand for entries that were left out: many entries just above the smallest, none below.

    In short formats and quantized tensors small entries are zero, and their smallest steps frequent, without that.
    """
    sizes = gradient[gradient != 0].abs()
    if not len(sizes) or len(sizes) == gradient.numel():
        return False
    crowded = int((sizes < 2 * sizes.min()).sum()) > _EDGE_ENTRIES
    return crowded and significant_bits(gradient) > HALF and rounding_std(gradient) == 0.0


def determined(space: Subspace) -> bool:
    """Whether members and strangers are told apart at sight: else a completion has not found the space."""
    return _CLEAR * space.blur < math.sqrt(space.rest / space.features)


def completed_space(
    gradients: Sequence[Float[Tensor, "features outputs"]], plain: Subspace, *, summands: int, expected_rank: int = 0
) -> Subspace:
    """The space of gradients with one input from their survivors, where these determine more of it.

    Args:
        plain: the same with zeros taken for noise of the size that they may hide.
    """
    done = complete(torch.cat(list(gradients), dim=1), summands=summands, expected_rank=expected_rank)
    space = None if done is None else done.space(plain.features)
    return plain if space is None or (space.inputs < plain.inputs and space.blur > plain.blur) else space


def determinable(
    present: Bool[Tensor, "rows columns"], *, wanted: int | None = None
) -> tuple[int, Int64[Tensor, " chosen"], Int64[Tensor, " chosen_columns"]]:
    """The largest rank that the survivors of some block determine by count, with the rows and the columns of the block.

    With ``wanted`` the smallest block that determines this rank is taken, if any does. Blocks are made of the rows and the columns with most survivors. A matrix of rank r has r (rows + columns − r) free numbers.
    """
    rows, columns = (present.sum(dim=axis).argsort(descending=True) for axis in (1, 0))
    ordered = present[rows][:, columns]
    along, down = ordered.cumsum(1), ordered.cumsum(0)
    found: list[tuple[int, int, int]] = []
    for k in _sizes(len(rows)):
        for m in _sizes(len(columns)):
            in_rows, in_columns = along[:k, m - 1], down[k - 1, :m]
            least = min(_low(in_rows), _low(in_columns)) / _PER_LINE
            root = (k + m) ** 2 - 4 * float(in_rows.sum()) / _OVERSAMPLING
            free = min(k, m) if root <= 0 else (k + m - math.sqrt(root)) / 2
            found.append((int(min(least, free)), k, m))
    enough = [one for one in found if wanted is not None and one[0] >= wanted]
    rank, k, m = min(enough, key=lambda one: one[1] * one[2]) if enough else max(found)
    return rank, rows[:k], columns[:m]


def complete(gradient: Float[Tensor, "features outputs"], *, summands: int, expected_rank: int = 0) -> Completed | None:
    """U from the entries that survived; None where no block of them determines more than it takes to fit.

    Args:
        gradient: zeros are entries that were left out.
        summands: no larger rank is expected.
        expected_rank: where the search for the rank starts; it costs time if wrong, and nothing else.
    """
    present = gradient != 0
    most, rows, columns = determinable(present, wanted=int(_ROOM * summands))
    if most < 1:
        return None
    full = gradient.double()
    full = full / (full.square().sum(0) / present.sum(0).clamp(min=1)).sqrt().clamp(min=1e-300)
    rng = torch.Generator().manual_seed(gradient.shape[0] + gradient.shape[1])
    held = (torch.rand(full.shape, generator=rng) < _HELD).to(present.device) & present
    block = _Block(
        values=full[rows][:, columns], fitted=(present & ~held)[rows][:, columns], held=held[rows][:, columns]
    )
    fit = block.searched(most, min(expected_rank, most), rng)
    return _extended(full, present, held, rows, fit) if fit.rank else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """U and V with orthonormal columns, and the error per entry on survivors that were not fitted."""

    left: Float[Tensor, "rows rank"]
    right: Float[Tensor, "columns rank"]
    error: float = math.inf

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def at_gap(self) -> _Fit:
        """Up to the largest ratio of neighboring singular values in the second half of them."""
        sizes = torch.linalg.svdvals(self.left).clamp(min=1e-300)
        half = self.rank // 2
        if self.rank - half < 2:
            return self
        return self._leading(half + 1 + int((sizes[half:-1] / sizes[half + 1 :]).argmax()))

    def cut(self) -> _Fit:
        """Without the directions that the error alone could make."""
        sizes, columns = torch.linalg.svdvals(self.left), len(self.right)
        edge = self.error * _to_factor(columns, self.rank) * noise_edge(len(self.left), self.rank)
        return self._leading(int((sizes > edge).sum()))

    def _leading(self, rank: int) -> _Fit:
        rotated, sizes, turn = torch.linalg.svd(self.left, full_matrices=False)
        return replace(self, left=(rotated * sizes)[:, :rank], right=(self.right @ turn.T)[:, :rank])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Rows and columns with many survivors."""

    values: Float[Tensor, "rows columns"]
    fitted: Bool[Tensor, "rows columns"]
    held: Bool[Tensor, "rows columns"]

    def searched(self, most: int, start: int, rng: torch.Generator) -> _Fit:
        """The fit whose error on held survivors is least; the rank grows until a larger one does not lower it."""
        best = fit = self._swept(self._started(start, most))
        failed = 0
        while failed < _FAILURES:
            if failed == 1 or best.rank >= most or best.error <= _FLOOR:
                best = self._settled(best)
            more = min(max(1, best.rank // _GROWTH >> failed), most - best.rank)
            if best.error <= _FLOOR or not more:
                break
            fit = self._swept(self._widened(best, more, rng))
            failed = 0 if fit.error < _SLOW * best.error else failed + 1
            best = fit if fit.error < best.error else best
        return best.cut()

    def _settled(self, fit: _Fit) -> _Fit:
        """Of this fit and those up to the ranks behind which singular values fall most, the one of least error."""
        best = fit
        for _ in range(_CUTS):
            cut = fit.at_gap()
            if cut.rank == fit.rank or (best.error <= _FLOOR and best is not fit):
                break
            fit = self._swept(cut, stalled=_SLOW)
            best = fit if fit.error < best.error or fit.error <= _FLOOR else best
            if fit.error > _LOST * best.error:
                break
        return best

    def _started(self, start: int, most: int) -> _Fit:
        """What the survivors alone show, zeros taken for noise of the size that they may hide."""
        present = self.fitted | self.held
        kept = self.values * present
        left, sizes, right = torch.linalg.svd(kept, full_matrices=False)
        least = kept.abs().where(present, math.inf).amin(0)
        hidden = (least.square() * (~present).double().mean(0)).mean().sqrt() / math.sqrt(3.0)
        shown = int((sizes > hidden * noise_edge(*kept.shape)).sum())
        rank = min(most, max(1, start or shown))
        return _Fit(left=(left * sizes)[:, :rank], right=right[:rank].T)

    def _swept(self, fit: _Fit, stalled: float = _STALLED) -> _Fit:
        before = [math.inf, math.inf]
        for _ in range(_SWEEPS):
            left = torch.linalg.qr(fit.left).Q
            right = torch.linalg.qr(solve_columns(left, self.fitted, self.values)).Q
            left = solve_columns(right, self.fitted.T, self.values.T)
            missed = (self.values - left @ right.T)[self.held]
            fit = _Fit(left=left, right=right, error=float(missed.square().mean().sqrt()))
            if fit.error <= _FLOOR or fit.error > stalled * before[-2]:
                break
            before.append(fit.error)
        return fit

    def _widened(self, fit: _Fit, more: int, rng: torch.Generator) -> _Fit:
        """With the directions of which most is left on the fitted survivors."""
        left = (self.values - fit.left @ fit.right.T) * self.fitted
        mixed = left @ torch.randn(left.shape[1], 2 * more, generator=rng, dtype=left.dtype).to(left.device)
        frame = torch.linalg.qr(left @ (left.T @ mixed)).Q
        new = frame @ torch.linalg.svd(frame.T @ left, full_matrices=False)[0][:, :more]
        return replace(fit, left=torch.cat((torch.linalg.qr(fit.left).Q, new), dim=1))


def _extended(full: Tensor, present: Tensor, held: Tensor, rows: Int64[Tensor, " rows"], fit: _Fit) -> Completed:
    """All columns that the block's rows determine, and then all rows that these columns determine."""
    counts = (present & ~held)[rows].sum(0)
    columns = counts.argsort(descending=True)[: 2 * _LARGEST]
    columns = columns[counts[columns] >= _PER_LINE * fit.rank]
    left = torch.linalg.qr(fit.left).Q
    right = torch.linalg.qr(solve_columns(left, (present & ~held)[rows][:, columns], full[rows][:, columns])).Q
    fitted, values = (present & ~held)[:, columns], full[:, columns]
    chosen = (fitted.sum(1) >= _PER_LINE * fit.rank).nonzero().flatten()
    left = solve_columns(right, fitted[chosen].T, values[chosen].T)
    left_out = held[chosen][:, columns]
    missed = ((values[chosen] - left @ right.T) * left_out).square()
    average = missed.sum() / left_out.sum().clamp(min=1)
    by_row = (missed.sum(1) / left_out.sum(1).clamp(min=1)).maximum(average)
    return Completed(rows=chosen, left=left, noise=by_row.sqrt() * _to_factor(len(columns), fit.rank))


def solve_columns(
    factor: Float[Tensor, "rows rank"], present: Bool[Tensor, "rows columns"], values: Float[Tensor, "rows columns"]
) -> Float[Tensor, "columns rank"]:
    """The combination of the factor's columns that fits each column of ``values`` best where it is present."""
    weight, rank = present.to(factor.dtype), factor.shape[1]
    upper, lower = torch.triu_indices(rank, rank, device=factor.device)
    sums = weight.T @ (factor[:, upper] * factor[:, lower])
    gram = sums.new_empty(len(sums), rank, rank)
    gram[:, upper, lower] = sums
    gram[:, lower, upper] = sums
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal.add_(_RIDGE * diagonal.mean(1, keepdim=True) + 1e-300)
    roots, _ = torch.linalg.cholesky_ex(gram)
    return torch.cholesky_solve(((values * weight).T @ factor).unsqueeze(2), roots).squeeze(2)


def _to_factor(columns: int, rank: int) -> float:
    """Error per entry of U, where U Vᵀ with V's columns orthonormal has an error of one per entry."""
    return math.sqrt(columns / max(1, rank))


def _sizes(most: int) -> list[int]:
    largest = min(most, _LARGEST)
    smallest = min(largest, 16)
    return sorted({round(smallest * (largest / smallest) ** (i / (_SIZES - 1))) for i in range(_SIZES)})


def _low(counts: Tensor) -> float:
    return float(counts.double().quantile(0.02))
