"""Why: before the first attention a position knows only its own token, so every token can be tested at every position
at once: is its input to the first attention in the column space of that attention's gradients? Where the input follows
the law of ``first_input`` the test factors; otherwise the model runs on the whole vocabulary.
Must not know how sequences are put together.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.mechanics.probing.first_input import read_first_input
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks, reads_position
from gradleak.mechanics.subspace.null_laws import Null, accept, fit_null
from gradleak.span.candidates.factored_test import FactoredTest
from gradleak.span.candidates.replayed_test import ReplayedTest
from gradleak.span.candidates.types import Candidates
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, ObservedLayer

_NULL_PAIRS = 4096
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


def find_candidates(
    reader: ObservedLayer,
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
            f"relative noise {typical:.1e}: a token of the batch cannot be told from any other. Either the batch holds "
            "more distinct inputs than the model is wide, or the update was altered (noise, pruning, signs, an adaptive optimizer), or "
            "dropout altered the inputs, or the client trained other weights than these."
        )
    blurred = cut < _CLEAR * typical
    if blurred and isinstance(test, FactoredTest):
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
    reader: ObservedLayer,
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


def _make_test(reader: ObservedLayer, model: Model, positions: int, rng: torch.Generator) -> tuple[_FirstTest, int]:
    """The test, and the number of positions at which inputs differ: all, or one where positions enter by rotation."""
    law = read_first_input(model.subject, reader.path, positions=positions, parameters=model.parameters)
    if law is not None:
        places = law.positions
        alike = bool((places - places[:1]).norm() <= 1e-4 * law.table[0].norm() * law.scale)
        if alike:
            law = replace(law, positions=places[:1])
        return FactoredTest.of(law, reader.space, rng), len(law.positions)
    some = torch.randperm(model.vocab_size, generator=rng)[:4]
    width = positions if reads_position(model.subject, reader.path, some, positions=positions) else 1
    return ReplayedTest(reader=reader, model=model, width=width, rng=rng), width


def _null_of(test: _FirstTest, sample: Tensor) -> tuple[Null, float]:
    """The null fitted on a sample of tokens at all positions, and the residual a typical member would show."""
    residual, expected = test.judge(sample)
    return fit_null(residual.flatten()), float(expected.median())
