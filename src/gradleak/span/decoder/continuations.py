"""Why: behind the first attention a layer's input depends on the tokens so far, and the gradient there tells which
sequences the batch holds. Two ways to that input for many sequences at once: attention over the candidates' own queries,
keys and values, kept from one pass (``CachedAttention``); or the model itself on every sequence (``FullForward``), where its
attention cannot be intercepted or its output map was not shared. Must not know how sequences are searched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.heads import Heads, read_heads
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import LargestTensor, chunks
from gradleak.mechanics.subspace.null_laws import LogNull, log_odds
from gradleak.span.candidates.types import Candidates
from gradleak.span.decoder.prefilter import Prefilter
from gradleak.span.decoder.projections import Projection, output_projection, stream_projection
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, Calibration, ObservedLayer, calibrate, judge_rows

DECOYS = 12
"""Random tokens tested beside the candidates of each position: they show what a wrong continuation looks like."""
_DECOY_TOKENS = 64
"""Tokens that decoys are drawn from: few, so that their projections are made once for all positions."""
_NULL_ROWS = 192
_DECISIVE = 1.0
"""Decades between members and wrong continuations from which a projection may reject one; the best projection always may."""
_WORTH_SCREENING = 64
"""Continuations below which the test itself is as fast."""
_FEW = 4
"""One continuation in so many is followed on its own; of more, all share their products."""
_ACTIVATIONS = 12
"""Rough number of width-sized activations that a block holds per token; sizes the chunks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """Which continuations pass, and how far each is from the floor (log ratio, ``[prefixes extensions]``)."""

    passed: Tensor
    excess: Float[Tensor, "prefixes extensions"]


class Continuations(Protocol):
    """Tests every candidate behind every prefix. Sequences are rows of candidate numbers, one per position."""

    def test(self, prefixes: Int64[Tensor, "prefixes before"], *, tests_left: int) -> Verdicts:
        """Tests all candidates of the next position; ``tests_left`` positions share the rate of false alarms."""
        ...

    def since(self, start: int) -> Continuations:
        """The same for sequences that begin at position ``start``, behind padding."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Candidates as a rectangle: row r of position p, filled up with decoys where a position has fewer.

    Attributes:
        tokens: token ids; the last rows are decoys at every position.
        counts: number of real candidates at each position.
    """

    tokens: Int64[Tensor, "rows seq"]
    counts: tuple[int, ...]

    @staticmethod
    def of(candidates: Candidates, vocab_size: int, rng: torch.Generator) -> Grid:
        length = candidates.length()
        counts = tuple(candidates.tokens[p].numel() for p in range(length))
        few = torch.randint(vocab_size, (_DECOY_TOKENS,), generator=rng)
        tokens = few[torch.randint(_DECOY_TOKENS, (max(counts) + DECOYS, length), generator=rng)].to(
            candidates.nearest.device
        )
        for p, count in enumerate(counts):
            tokens[:count, p] = candidates.tokens[p]
        return Grid(tokens=tokens, counts=counts)

    @property
    def length(self) -> int:
        return len(self.counts)

    def since(self, start: int) -> Grid:
        """The candidates from position ``start`` on."""
        return Grid(tokens=self.tokens[:, start:], counts=self.counts[start:])

    def ids(self, sequences: Int64[Tensor, "sequences length"]) -> Int64[Tensor, "sequences length"]:
        """Token ids of sequences of candidate numbers."""
        return self.tokens[sequences, torch.arange(sequences.shape[1], device=sequences.device)]

    def numbers(self, ids: Int64[Tensor, " length"]) -> Int64[Tensor, " length"]:
        """Candidate numbers of a sequence of candidates."""
        return torch.stack([(self.tokens[: self.counts[p], p] == ids[p]).int().argmax() for p in range(len(ids))])


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedAttention:
    """Continuations through kept queries, keys and values."""

    grid: Grid
    heads: Heads
    projections: tuple[Projection, ...]
    screen: Prefilter

    @staticmethod
    def of(grid: Grid, readers: Sequence[ObservedLayer], model: Model, rng: torch.Generator) -> CachedAttention | None:
        """None if no reader's input follows from the first attention's queries, keys and values alone."""
        block = model.subject.anatomy.blocks[0]
        near = [r for r in readers if r.path in {each.module for each in block.behind_attention()}]
        heads = read_heads(model.subject, grid.tokens, parameters=model.parameters) if near else None
        if heads is None:
            return None
        projections = [
            output_projection(reader, heads.value.dtype, rng)
            if reader.path == block.attention_output.module
            else stream_projection(reader, block.attention_output, model, grid.tokens, rng)
            for reader in near
        ]
        usable = tuple(projection for projection in projections if projection is not None)
        if not usable:
            return None
        return CachedAttention(grid=grid, heads=heads, projections=usable, screen=Prefilter.of(usable, rng))

    def since(self, start: int) -> CachedAttention:
        projections = tuple(projection.since(start) for projection in self.projections)
        return CachedAttention(
            grid=self.grid.since(start),
            heads=self.heads.since(start),
            projections=projections,
            screen=self.screen.since(start),
        )

    def test(self, prefixes: Int64[Tensor, "prefixes before"], *, tests_left: int) -> Verdicts:
        before = prefixes.shape[1]
        count = self.grid.counts[before]
        rate = FALSE_ALARM_RATE / max(1, len(prefixes) * count * tests_left)
        nulls = self._nulls(prefixes)
        cuts = [null.cut(rate) for null in nulls]
        margins = [projection.margin(cut) for projection, cut in zip(self.projections, cuts, strict=True)]
        # What the projections still to come could at most say in favor.
        slack = [sum(0.5 * math.log(10.0) * max(m, 0.0) for m in margins[i + 1 :]) for i in range(len(margins))]
        decisive = [i for i, margin in enumerate(margins) if margin >= _DECISIVE or margin == max(margins)]
        device = self.heads.query.device
        passed = torch.zeros(len(prefixes), count, dtype=torch.bool, device=device)
        excess = torch.zeros(len(prefixes), count, dtype=torch.float64, device=device)
        extensions = torch.arange(count, device=device)
        deciding = {i: cuts[i] for i in decisive}
        usual = {i: math.exp(nulls[i].center) for i in decisive}
        plausible = torch.ones_like(passed)
        if passed.numel() >= _WORTH_SCREENING and self.screen.excludes(deciding, usual):
            plausible = self.screen.keeps(self.heads, prefixes, count, deciding)
        for part in chunks(len(prefixes), count * self.heads.width):
            parents, children = plausible[part].nonzero(as_tuple=True)
            if _FEW * len(parents) < plausible[part].numel():
                attended = self.heads.extend_each(prefixes[part][parents], children)
            else:
                attended = self.heads.extend(prefixes[part], extensions)[parents, children]
            alive = torch.arange(len(attended), device=device)
            evidence = torch.zeros(len(attended), dtype=torch.float64, device=device)
            total = torch.zeros(len(attended), dtype=torch.float64, device=device)
            for i in decisive:
                residual, expected = self.projections[i].judge(attended[alive], children[alive], before)
                total[alive] += (residual.clamp(min=1e-12) / expected).log().clamp(min=0.0)
                evidence[alive] += log_odds(residual, expected, null_cut=cuts[i])
                alive = alive[evidence[alive] < slack[i]]
            passed[part][parents[alive], children[alive]] = True
            excess[part][parents, children] = total / len(decisive)
        return Verdicts(passed=passed, excess=excess)

    def _nulls(self, prefixes: Tensor) -> list[LogNull]:
        """For each projection, the law of decoys behind (some of) the prefixes."""
        before, rows = prefixes.shape[1], len(self.grid.tokens)
        decoys = torch.arange(rows - DECOYS, rows, device=self.grid.tokens.device)
        some = prefixes[:: max(1, len(prefixes) * DECOYS // _NULL_ROWS)]
        attended = self.heads.extend(some, decoys).flatten(0, 1)
        return [LogNull.of(r.judge(attended, decoys.repeat(len(some)), before)[0]) for r in self.projections]


@dataclass(frozen=True, kw_only=True, slots=True)
class FullForward:
    """Continuations through the model itself, tested wherever ``readers`` stand.

    Attributes:
        start: positions of padding before every sequence.
    """

    grid: Grid
    readers: Sequence[ObservedLayer]
    model: Model
    start: int = 0

    def since(self, start: int) -> FullForward:
        return replace(self, grid=self.grid.since(start), start=self.start + start)

    def test(self, prefixes: Int64[Tensor, "prefixes before"], *, tests_left: int) -> Verdicts:
        before = prefixes.shape[1]
        count, decoys = self.grid.counts[before], self.grid.tokens[-DECOYS:, before]
        starts = self.grid.ids(prefixes)
        rows = _pairs(starts, self.grid.tokens[:count, before])
        null = _pairs(starts[: max(1, _NULL_ROWS // DECOYS)], decoys)
        verdict = judge_rows(
            self.readers, self._last_inputs(rows), self._calibration(null), tests=len(rows) * tests_left
        )
        shape = (len(prefixes), count)
        return Verdicts(passed=verdict.passed.view(shape), excess=verdict.excess.view(shape))

    def _calibration(self, null: Tensor) -> Calibration:
        return calibrate(self.readers, self._last_inputs(null))

    def _last_inputs(self, rows: Tensor) -> list[Float[Tensor, "rows features"]]:
        width = max(reader.space.features for reader in self.readers)
        parts: list[list[Tensor]] = [[] for _ in self.readers]
        with LargestTensor() as needed:
            self.model.inputs_behind(self.start, self.readers, rows[:1])
        for part in chunks(len(rows), max(needed.numel, (self.start + rows.shape[1]) * width * _ACTIVATIONS)):
            made = self.model.inputs_behind(self.start, self.readers, rows[part])
            for store, value in zip(parts, made, strict=True):
                store.append(value[:, -1])
        return [torch.cat(store) for store in parts]


def _pairs(starts: Tensor, ends: Tensor) -> Tensor:
    """Every start continued by every end, starts in the outer loop."""
    left = starts.repeat_interleave(len(ends), dim=0)
    return torch.cat((left, ends.repeat(len(starts)).unsqueeze(1)), dim=1)


def open_first(
    candidates: Candidates, readers: tuple[ObservedLayer, ...], model: Model, rng: torch.Generator
) -> Candidates:
    """Candidates with a first position, where queries alone, which never show it, were shared: the next layer knows it."""
    every = replace(candidates, tokens=(torch.arange(model.vocab_size),), residuals=(torch.zeros(model.vocab_size),))
    grid = Grid.of(every, model.vocab_size, rng)
    start = torch.empty(1, 0, dtype=torch.int64, device=grid.tokens.device)
    verdicts = FullForward(grid=grid, readers=readers, model=model).test(start, tests_left=candidates.length())
    first = verdicts.passed[0].nonzero().flatten()
    return replace(
        candidates,
        tokens=(first, *candidates.tokens[1:]),
        residuals=(verdicts.excess[0, first], *candidates.residuals[1:]),
    )
