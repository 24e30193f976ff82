"""Why: sentences of a bidirectional model, put together from candidates per position. Few combinations are tried one by
one; many are searched by exchanging one position at a time, from many starts at once. Whatever the search proposes,
only a sentence of which every position passes the context test is accepted. Must not know labels or losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.probe import chunks
from gradleak.mechanics.span_exchange import Exchange, ForwardExchange, Pairs, attention_exchange
from gradleak.mechanics.span_readers import Calibration, Candidates, Model, Reader, calibrate, judge_rows
from gradleak.models import Block

_ENUMERATE_AT_MOST = 512
_NULL_SENTENCES = 48
_CHAINS = 16
_POLISHED = 3
_SWEEPS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembled:
    """Accepted sentences, nearest to the floor first; ``finished`` is False if the clock ran out first."""

    sentences: tuple[Int64[Tensor, " length"], ...]
    tested: int
    finished: bool
    rounds: int


@dataclass(slots=True)
class _Found:
    sentences: dict[tuple[int, ...], float] = field(default_factory=dict)
    rejected: set[tuple[int, ...]] = field(default_factory=set)
    calibrations: dict[int, Calibration] = field(default_factory=dict)
    tested: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """What the search works with.

    Attributes:
        readers: places behind the first attention.
        batch_size: number of sentences to find, or None if unknown.
        lengths: lengths that sentences may have, most plausible first.
        closing: token that ends every sentence, or None.
        rounds: number of passes over all positions before the search gives up.
    """

    candidates: Candidates
    first: Reader
    readers: tuple[Reader, ...]
    model: Model
    block: Block
    batch_size: int | None
    lengths: tuple[int, ...]
    closing: int | None = None
    rounds: int = 4

    def run(self, *, rng: torch.Generator, clock: Clock) -> Assembled:
        """Tries every length by enumeration where that is cheap, then searches until all sentences are found."""
        found = _Found()
        hard = [length for length in self.lengths if not self._enumerate(length, found, rng)]
        if not hard or self._enough(found) or clock.spent():
            return self._result(found, 0, finished=not hard or self._enough(found))
        exchange = self._exchange(rng)
        for turn, length, position in self._schedule(hard):
            if clock.spent():
                return self._result(found, turn, finished=False)
            clock.progress(len(found.sentences) / (self.batch_size or 1), f"{len(found.sentences)} sentences found")
            self._search(exchange, length, position, found, rng, relaxed=turn == 0)
            if self._enough(found):
                return self._result(found, turn, finished=True)
        return self._result(found, self.rounds, finished=True)

    def _schedule(self, lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Turn, length and anchor position of every search: all lengths early, positions with few options first."""
        anchors = {length: self._anchor_positions(length) for length in lengths}
        for turn in range(self.rounds):
            for rank in range(max(map(len, anchors.values()), default=0)):
                for length in lengths:
                    if rank < len(anchors[length]):
                        yield turn, length, anchors[length][rank]

    def _enough(self, found: _Found) -> bool:
        return self.batch_size is not None and len(found.sentences) >= self.batch_size

    def _result(self, found: _Found, rounds: int, *, finished: bool) -> Assembled:
        ranked = sorted(found.sentences, key=found.sentences.__getitem__)
        return Assembled(
            sentences=tuple(torch.tensor(ids) for ids in ranked), tested=found.tested, finished=finished, rounds=rounds
        )

    def _options(self, length: int) -> list[Tensor]:
        """Token ids per position for sentences of this length."""
        options = [self.candidates.tokens[p] for p in range(length)]
        if self.closing is not None and bool((options[-1] == self.closing).any()):
            options[-1] = torch.tensor([self.closing])
        return options

    def _enumerate(self, length: int, found: _Found, rng: torch.Generator) -> bool:
        options = self._options(length)
        count = math.prod(ids.numel() for ids in options)
        if count > _ENUMERATE_AT_MOST:
            return False
        if count:
            self._verify(torch.cartesian_prod(*options).reshape(count, length), found, rng)
        return True

    def _verify(self, rows: Int64[Tensor, "sentences seq"], found: _Found, rng: torch.Generator) -> None:
        """Accepts those sentences of which every position passes; none is looked at twice."""
        seen = found.rejected | found.sentences.keys()
        new = [ids for ids in dict.fromkeys(map(tuple, rows.tolist())) if ids not in seen]
        if not new:
            return
        rows = torch.tensor(new)
        length = rows.shape[1]
        if length not in found.calibrations:
            null_ids = torch.randint(self.model.vocab_size, (_NULL_SENTENCES, length), generator=rng)
            null = [z.flatten(0, 1) for z in self.model.inputs(self.readers, null_ids)]
            found.calibrations[length] = calibrate(self.readers, null)
        width = max(reader.space.features for reader in self.readers)
        found.tested += rows.numel()
        for part in chunks(len(rows), length * width * 12):
            vectors = [z.flatten(0, 1) for z in self.model.inputs(self.readers, rows[part])]
            verdict = judge_rows(self.readers, vectors, found.calibrations[length], tests=found.tested)
            passed = verdict.passed.reshape(-1, length).all(1).tolist()
            excess = verdict.excess.reshape(-1, length).mean(1).tolist()
            for ids, good, value in zip(new[part], passed, excess, strict=True):
                if good:
                    found.sentences[ids] = value
                else:
                    found.rejected.add(ids)

    def _exchange(self, rng: torch.Generator) -> Exchange:
        pairs = Pairs.of(self.candidates)
        for reader in self.readers:
            fast = attention_exchange(self.model, pairs, self.block, self.first, reader, rng)
            if fast is not None:
                return fast
        return ForwardExchange(model=self.model, pairs=pairs, reader=self.readers[0])

    def _anchor_positions(self, length: int) -> list[int]:
        """Positions with a choice, fewest options first: every sentence passes through each of them."""
        counts = [ids.numel() for ids in self._options(length)]
        return sorted((p for p in range(length) if counts[p] > 1), key=counts.__getitem__)

    def _search(
        self, exchange: Exchange, length: int, anchor: int, found: _Found, rng: torch.Generator, *, relaxed: bool
    ) -> None:
        """Sentences through every option at ``anchor``: by relaxation where the model allows it, else by exchange.

        Exchange chains keep the anchor. First only that and positions without a choice are
        watched, which any true sentence with this token satisfies; then all positions, which polishes near misses.
        """
        pairs = Pairs.of(self.candidates)
        options = [pairs.at[p] for p in range(length)]
        if self.closing is not None:
            closing = options[-1][pairs.tokens[options[-1]] == self.closing]
            options[-1] = closing if closing.numel() else options[-1]
        watched = [*(p for p in range(length) if options[p].numel() == 1), anchor]
        free = [p for p in range(length) if p not in watched]
        rows = _starts(options, anchor, rng)
        mixed = exchange.relax(rows[: options[anchor].numel(), watched], options) if relaxed else None
        rows = _descend(exchange, rows, options, free, watched=watched, rng=rng) if mixed is None else mixed
        self._verify(pairs.tokens[rows], found, rng)
        if self._enough(found) or not free:
            return
        # Scored by exchanging a token for itself: each chain's cost at its own option.
        place = options[free[0]]
        costs = exchange.costs(rows, free[0], place, watched)
        own = costs.gather(1, (rows[:, free[0]].unsqueeze(1) == place).int().argmax(1, keepdim=True)).squeeze(1)
        rows = rows[own.argsort()]
        rows = rows[_distinct(rows)][:_POLISHED]
        rows = _descend(exchange, rows, options, free, watched=list(range(length)), rng=rng)
        self._verify(pairs.tokens[rows], found, rng)


def _starts(options: Sequence[Tensor], anchor: int, rng: torch.Generator) -> Int64[Tensor, "chains seq"]:
    """Random sentences through every option at the anchor, each option at least once, in order."""
    begin = options[anchor].repeat(max(1, _CHAINS // options[anchor].numel()))
    rows = torch.stack([o[torch.randint(o.numel(), (len(begin),), generator=rng)] for o in options], dim=1)
    rows[:, anchor] = begin
    return rows


def _distinct(rows: Int64[Tensor, "chains seq"]) -> list[int]:
    """Index of the first of each group of equal rows, in order."""
    first: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(rows.tolist()):
        first.setdefault(tuple(row), index)
    return list(first.values())


def _descend(
    exchange: Exchange,
    rows: Int64[Tensor, "chains seq"],
    options: Sequence[Tensor],
    free: Sequence[int],
    *,
    watched: Sequence[int],
    rng: torch.Generator,
) -> Int64[Tensor, "chains seq"]:
    """Exchanges the best option at one position after the other until no chain changes."""
    rows = rows.clone()
    for _ in range(_SWEEPS):
        before = rows.clone()
        for index in torch.randperm(len(free), generator=rng).tolist():
            position = free[index]
            costs = exchange.costs(rows, position, options[position], watched)
            rows[:, position] = options[position][costs.argmin(1)]
        if torch.equal(before, rows):
            break
    return rows
