"""Why: before the first attention a position knows only its own token, so every token can be tested at every position
at once: is its input to the first attention in the column space of that attention's gradients? Where the input follows
the law of ``first_input`` the test factors; otherwise the model runs on the whole vocabulary.
Must not know how sequences are put together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from scipy.stats import f as ratio_of_variances
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.mechanics.probing.first_input import FirstInput, read_first_input
from gradleak.mechanics.probing.probe import LargestTensor, chunks, reads_context, reads_position
from gradleak.mechanics.subspace.null_laws import Null, accept, fit_null
from gradleak.mechanics.subspace.subspace import Subspace
from gradleak.span.reading.evidence import SpanCase
from gradleak.span.reading.readers import FALSE_ALARM_RATE, Candidates, Model, Reader

_PROBED_TOKENS = 4
_FIRST_WINDOW = 32
_NULL_PAIRS = 4096
_SKETCH_COLUMNS, _SCREEN_COLUMNS = 32, 8
"""Directions outside the space that a pair is tested with, and those that the whole vocabulary meets first."""
_TILT_COLUMNS = 16
_LENGTH_COLUMNS = 8
_MISSED = 1e-6
"""Chance that a pair half way between members and others is screened out; members are far less likely to be."""
_CANCELLATION = 4e-3
"""What float32 leaves of a token's and a position's part that cancel: the root of 128 roundings of their squares."""
_CLEAR = 30.0
"""Ratio of the null's cut to a member's residual above which a sketch of the complement is as good as all of it."""


class _FirstTest(Protocol):
    """Tests tokens at all positions of a window."""

    @property
    def floats_each(self) -> int:
        """Rough number of intermediate values that ``judge`` holds per token."""
        ...

    def judge(self, ids: Int64[Tensor, " tokens"]) -> tuple[Tensor, Tensor]:
        """Residuals and a member's expected residuals, ``[tokens positions]`` each, in float64."""
        ...

    def weigh(self, ids: Int64[Tensor, " tokens"], root: Float[Tensor, "features columns"]) -> Tensor:
        """‖z root‖² / ‖z‖² of the input z of every token at every position, ``[tokens positions]``."""
        ...

    def screen(self, below: float) -> Int64[Tensor, " tokens"]:
        """Tokens that may have a residual ``below`` somewhere; hardly any is missed."""
        ...

    def nearest(self, places: Int64[Tensor, " places"]) -> Int64[Tensor, " places"]:
        """The token with (roughly) the smallest residual of all at some positions."""
        ...


def candidates_of(case: SpanCase, first: Reader, rng: torch.Generator) -> Candidates:
    """Candidates at every position of a case; where the length is unknown the window grows until its end is empty.

    Raises:
        NotApplicableError: if what the first attention reads depends on other tokens, or members cannot be told from the rest.
    """
    if reads_context(case.subject, first.path, torch.arange(min(_PROBED_TOKENS, case.model.vocab_size))):
        raise NotApplicableError(
            f"The first attention reads {first.path!r}, whose input depends on other tokens already: no token can be tested alone."
        )
    longest = case.subject.anatomy.max_positions or 1_000_000
    if case.seq_len is not None:
        return find_candidates(first, case.model, positions=min(case.seq_len, longest), rng=rng)
    window = min(_FIRST_WINDOW, longest)
    while True:
        found = find_candidates(first, case.model, positions=window, rng=rng)
        if not found.positional or found.length() < window or window == longest:
            return found
        window = min(2 * window, longest)


def find_candidates(
    reader: Reader,
    model: Model,
    *,
    positions: int,
    rng: torch.Generator,
    keep_at_most: int = 4096,
    false_per_position: float = 0.0,
) -> Candidates:
    """Every token at every position, tested for membership in the reader's space.

    Args:
        false_per_position: non-members let through at each position where noise blurs the space, since it can hide
            directions altogether.

    Raises:
        NotApplicableError: if the space is so full, or so noisy, that members cannot be told from the rest.
    """
    space = reader.space
    test, width = _make_test(reader, model, positions, rng)
    sample = torch.randperm(model.vocab_size, generator=rng)[: max(64, _NULL_PAIRS // width)]
    null, typical = _null_of(test, sample)
    cut = null.cut(FALSE_ALARM_RATE / (model.vocab_size * width)) if space.rest else 0.0
    near = bool(false_per_position) and 2 * space.rank <= space.features
    if not cut > typical and not near:
        raise NotApplicableError(
            f"The gradients of the first attention span {space.rank} of {space.features} dimensions with "
            f"relative noise {typical:.1e}: a token of the batch cannot be told from any other. The batch holds more "
            "distinct inputs than the model is wide, or the update was altered (noise, pruning, signs, an adaptive optimizer), or "
            "dropout altered the inputs."
        )
    blurred = cut < _CLEAR * typical
    if blurred and isinstance(test, _Factored):
        test = test.sharpened()
    if blurred and near:
        # Later tests reject a few non-members per position, as long as their spaces leave room outside.
        cut = max(cut, null.cut(false_per_position / model.vocab_size))
    ids = test.screen(cut if blurred else math.sqrt(min(space.worst, cut) * cut))
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in chunks(len(ids), test.floats_each):
        residual, expected = test.judge(ids[part])
        # Noise can hide directions altogether; a member that lost some shows more than its expected residual.
        good = residual < cut if blurred else accept(residual, expected, null_cut=cut)
        rows, places = good.nonzero(as_tuple=True)
        kept.append((ids[part][rows], places, residual[rows, places]))
    return _by_position(kept, test, width=width, positions=positions, cut=cut, keep_at_most=keep_at_most)


def nearest_pairs(
    reader: Reader,
    model: Model,
    root: Float[Tensor, "features columns"],
    *,
    tokens: Int64[Tensor, " tokens"],
    positions: int,
    count: int,
    rng: torch.Generator,
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """Of ``tokens`` those with the least ‖z root‖² / ‖z‖² at each position, ``count`` pairs in all.

    Returns:
        Tokens and positions; all positions 0 where positions do not enter the input.
    """
    test, width = _make_test(reader, model, positions, rng)
    each = min(len(tokens), max(1, count // width))
    values = root.new_empty(0, width, dtype=torch.float32)
    best = tokens.new_empty(0, width)
    for part in chunks(len(tokens), test.floats_each):
        values = torch.cat((values, test.weigh(tokens[part], root)))
        best = torch.cat((best, tokens[part].unsqueeze(1).expand(-1, width)))
        values, order = values.topk(min(each, len(values)), dim=0, largest=False)
        best = best.gather(0, order)
    return best.T.flatten(), torch.arange(width, device=best.device).repeat_interleave(len(best))


def _by_position(
    kept: list[tuple[Tensor, Tensor, Tensor]],
    test: _FirstTest,
    *,
    width: int,
    positions: int,
    cut: float,
    keep_at_most: int,
) -> Candidates:
    tokens, places, residuals = (torch.cat(column) for column in zip(*kept, strict=True)) if kept else _NOTHING
    # By position, then by residual: one stable sort after the other.
    order = residuals.argsort()
    order = order[places[order].argsort(stable=True)]
    counts = torch.bincount(places, minlength=width).tolist()
    per_position = [
        (ids[:keep_at_most], values[:keep_at_most])
        for ids, values in zip(tokens[order].split(counts), residuals[order].split(counts), strict=True)
    ]
    nearest = torch.stack([ids[0] if len(ids) else ids.new_zeros(()) for ids, _ in per_position])
    filled = [place for place, (ids, _) in enumerate(per_position) if len(ids)]
    # Positions behind the last candidate hold nothing, so nothing is nearest there.
    between = [place for place in range(max(filled, default=0)) if place not in filled]
    if between:
        nearest[between] = test.nearest(nearest.new_tensor(between))
    positional = width == positions
    if not positional:
        per_position = per_position * positions
    return Candidates(
        tokens=tuple(ids for ids, _ in per_position),
        residuals=tuple(values for _, values in per_position),
        nearest=nearest if positional else nearest.expand(positions),
        null_cut=cut,
        positional=positional,
    )


_NOTHING = (
    torch.empty(0, dtype=torch.int64),
    torch.empty(0, dtype=torch.int64),
    torch.empty(0, dtype=torch.float64),
)


def _make_test(reader: Reader, model: Model, positions: int, rng: torch.Generator) -> tuple[_FirstTest, int]:
    """The test, and the number of positions at which inputs differ: all, or one where positions enter by rotation."""
    law = read_first_input(model.subject, reader.path, positions=positions, parameters=model.parameters)
    if law is not None:
        places = law.positions
        alike = bool((places - places[:1]).norm() <= 1e-4 * law.table[0].norm() * law.scale)
        if alike:
            law = replace(law, positions=places[:1])
        return _Factored.of(law, reader.space, rng), len(law.positions)
    some = torch.randperm(model.vocab_size, generator=rng)[:4]
    width = positions if reads_position(model.subject, reader.path, some, positions=positions) else 1
    return _Replayed(reader=reader, model=model, width=width, rng=rng), width


def _null_of(test: _FirstTest, sample: Tensor) -> tuple[Null, float]:
    """The null fitted on a sample of tokens at all positions, and the residual a typical member would show."""
    residual, expected = test.judge(sample)
    return fit_null(residual.flatten()), float(expected.median())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Factored:
    """The test through the law of the first input: linear in token and position up to one scale per pair.

    Attributes:
        outside: directions outside the space, orthogonal to the law's offset.
        tilt: random mixture of basis directions over their singular values; its length is a member's tilt.
    """

    law: FirstInput
    space: Subspace
    outside: Float[Tensor, "features columns"]
    tilt: Float[Tensor, "features columns"]
    length: Float[Tensor, "features columns"]

    @staticmethod
    def of(law: FirstInput, space: Subspace, rng: torch.Generator) -> _Factored:
        weighted = space.basis / space.singular
        mixer = torch.randn(space.rank, _TILT_COLUMNS, generator=rng, dtype=torch.float64) / math.sqrt(_TILT_COLUMNS)
        length = torch.randn(space.features, _LENGTH_COLUMNS, generator=rng, dtype=torch.float64)
        return _Factored(
            law=law,
            space=space,
            outside=space.sketch(_SKETCH_COLUMNS, rng, without=law.norm.offset),
            tilt=weighted @ mixer.to(weighted.device),
            length=length.to(weighted.device) / math.sqrt(_LENGTH_COLUMNS),
        )

    @property
    def floats_each(self) -> int:
        return 8 * len(self.law.positions) + self.space.features

    def sharpened(self) -> _Factored:
        """The same test with every direction outside the space."""
        rng = torch.Generator().manual_seed(0)
        return replace(self, outside=self.space.sketch(self.space.features, rng, without=self.law.norm.offset))

    def judge(self, ids: Int64[Tensor, " tokens"]) -> tuple[Tensor, Tensor]:
        law, norm = self.law, self.law.norm
        token = norm.center(law.scale * law.table[ids].double())
        place = norm.center(law.positions.double())
        gain, offset = norm.gain.double(), norm.offset.double()
        square = _pair_squares(token, place)
        sigma = (square / token.shape[1]).sqrt() if norm.normalized else torch.ones_like(square)
        token, place = gain * token, gain * place
        along = (token @ offset).unsqueeze(1) + place @ offset
        length = (_pair_squares(token, place) + 2 * sigma * along + (sigma * offset.norm()) ** 2).clamp(min=0).sqrt()
        beyond = _pair_squares(token @ self.outside, place @ self.outside).sqrt()
        tilted = torch.zeros_like(square)
        for column in self.tilt.T:
            tilted += ((token @ column).unsqueeze(1) + place @ column + sigma * (offset @ column)).square()
        known = length > 0
        length = length.clamp(min=1e-300)
        expected = self.space.noise * math.sqrt(self.space.rest) * tilted.sqrt() / length
        return torch.where(known, beyond / length, 1.0), expected.hypot(expected.new_tensor(self.space.precision))

    def weigh(self, ids: Int64[Tensor, " tokens"], root: Float[Tensor, "features columns"]) -> Tensor:
        law, norm = self.law, self.law.norm
        token, place = norm.center(law.scale * law.table[ids]), norm.center(law.positions)
        sigma = (_pair_squares(token, place) / token.shape[1]).sqrt() if norm.normalized else token.new_ones(())
        token, place = norm.gain * token, norm.gain * place

        def square(columns: Tensor | None) -> Tensor:
            one, other, offset = (x if columns is None else x @ columns for x in (token, place, norm.offset))
            along = (one @ offset).unsqueeze(1) + other @ offset
            return _pair_squares(one, other) + 2 * sigma * along + sigma**2 * offset.square().sum()

        return square(root.to(token.dtype)) / square(None).clamp(min=1e-30)

    def screen(self, below: float) -> Int64[Tensor, " tokens"]:
        law = self.law
        outside, lengths, columns = self._screening()
        error = float(ratio_of_variances.isf(_MISSED, columns, _LENGTH_COLUMNS))
        margin = max(error * below**2, _CANCELLATION**2)
        # ‖outside‖² − margin · ‖length‖² of token + position is one product of both.
        weight = outside.new_tensor([1.0] * columns + [-margin] * _LENGTH_COLUMNS)
        fold = torch.cat((outside, lengths), dim=1)
        place = law.positions.to(fold.dtype) @ fold
        along, of_place = 2.0 * (weight * place).T, place.square() @ weight
        found: list[Tensor] = []
        for part in chunks(len(law.table), fold.shape[1] + len(place)):
            token = law.scale * (law.table[part] @ fold)
            least = torch.addmm(of_place, token, along).amin(dim=1) + token.square() @ weight
            found.append((least < 0).nonzero().flatten() + part.start)
        return torch.cat(found)

    def nearest(self, places: Int64[Tensor, " places"]) -> Int64[Tensor, " places"]:
        law = self.law
        outside, lengths, columns = self._screening()
        fold = torch.cat((outside, lengths), dim=1)
        place = law.positions[places].to(fold.dtype) @ fold
        nearest, least = torch.zeros_like(places), fold.new_full((len(places),), math.inf)
        for part in chunks(len(law.table), fold.shape[1] + 4 * len(place)):
            token = law.scale * (law.table[part] @ fold)
            length = _pair_squares(token[:, columns:], place[:, columns:])
            rough = torch.where(length > 0, _pair_squares(token[:, :columns], place[:, :columns]) / length, math.inf)
            values, best = rough.min(dim=0)
            nearest = torch.where(values < least, best + part.start, nearest)
            least = torch.minimum(values, least)
        return nearest

    def _screening(self) -> tuple[Tensor, Tensor, int]:
        """Columns of residual and length, in the table's number format; all directions outside where the test was sharpened."""
        fold, dtype, columns = self.law.norm.fold, self.law.table.dtype, self.outside.shape[1]
        few = _SCREEN_COLUMNS if columns == _SKETCH_COLUMNS else columns
        outside = fold(self.outside[:, :few] * math.sqrt(columns / few)).to(dtype)
        return outside, fold(self.length).to(dtype), few


def _pair_squares(one: Float[Tensor, "tokens columns"], other: Float[Tensor, "positions columns"]) -> Tensor:
    """‖one_i + other_j‖² for all pairs; differences that cancel to rounding count as zero."""
    sums = one.square().sum(1, keepdim=True) + other.square().sum(1)
    return torch.addmm(sums, one, other.T, beta=1.0, alpha=2.0).clamp(min=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Replayed:
    """The test by running the model: a row of one token repeated gives its input at all positions in one pass."""

    reader: Reader
    model: Model
    width: int
    rng: torch.Generator

    @property
    def floats_each(self) -> int:
        with LargestTensor() as needed:
            self.model.inputs((self.reader,), torch.zeros(1, self.width, dtype=torch.int64))
        return max(needed.numel, self.width * self.reader.space.features)

    def judge(self, ids: Int64[Tensor, " tokens"]) -> tuple[Tensor, Tensor]:
        (z,) = self.model.inputs((self.reader,), ids.unsqueeze(1).expand(-1, self.width))
        return self.reader.space.residual(z), self.reader.space.expected(z)

    def weigh(self, ids: Int64[Tensor, " tokens"], root: Float[Tensor, "features columns"]) -> Tensor:
        (z,) = self.model.inputs((self.reader,), ids.unsqueeze(1).expand(-1, self.width))
        return (z @ root.to(z.dtype)).square().sum(-1) / z.square().sum(-1).clamp(min=1e-30)

    def screen(self, below: float) -> Int64[Tensor, " tokens"]:
        error = math.sqrt(float(ratio_of_variances.isf(_MISSED, _SKETCH_COLUMNS, self.reader.space.features)))
        return torch.cat([ids[rough.amin(dim=1) < error * below] for ids, rough in self._rough()])

    def nearest(self, places: Int64[Tensor, " places"]) -> Int64[Tensor, " places"]:
        nearest, least = torch.zeros_like(places), self.reader.space.basis.new_full((len(places),), math.inf)
        for ids, rough in self._rough():
            values, best = rough[:, places].min(dim=0)
            nearest, least = torch.where(values < least, ids[best], nearest), torch.minimum(values, least)
        return nearest

    def _rough(self) -> Iterator[tuple[Int64[Tensor, " tokens"], Float[Tensor, "tokens positions"]]]:
        """Tokens, some at a time, with what a few columns make of their residuals."""
        sketch = self.reader.space.sketch(_SKETCH_COLUMNS, self.rng)
        for part in chunks(self.model.vocab_size, self.floats_each):
            ids = torch.arange(part.start, part.stop, device=sketch.device)
            (z,) = self.model.inputs((self.reader,), ids.unsqueeze(1).expand(-1, self.width))
            length = z.norm(dim=-1)
            yield ids, torch.where(length > 0, (z @ sketch.to(z.dtype)).norm(dim=-1) / length, math.inf)
