"""Why: sentences of a bidirectional model, put together from candidates per position. Few combinations are tried one by
one; many are searched through anchors, each of which turns the update into linear equations on its sentence. Whatever
the search proposes, only a sentence of which every position passes the context test is accepted; where noise blurs that test,
sentences that explain the update together. Must not know labels or losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks
from gradleak.models import Block
from gradleak.span.candidates.membership import find_candidates
from gradleak.span.candidates.types import Candidates
from gradleak.span.encoder.attention_equations import AttentionEquations, Pairs, attention_equations, enough_columns
from gradleak.span.encoder.joint_decision import BatchDecision, DecidedBatch, Ids
from gradleak.span.encoder.proposals import _Family, _with_confident
from gradleak.span.encoder.relative_positions import RelativeSearch
from gradleak.span.encoder.repair import SwapSearch
from gradleak.span.encoder.subset_selection import PLAUSIBLE, RANDOM, Layout, select
from gradleak.span.reading.observed_layer import Calibration, ObservedLayer, calibrate, judge_rows

_ENUMERATE_AT_MOST = 512
_FALSE_PER_POSITION = 8.0
"""Non-members let through at each position when a blurred batch is refined; set by hand, not swept."""
_POOL = 96
"""Most sentences that a blurred batch is put together from, nearest to the floor first."""
_GROWTH = 1.25
"""How much the pool of a blurred batch must have grown before it is looked at again."""
_NULL_SENTENCES = 48
_STEPS = (11, 40)
"""Interior-point steps per anchor, first and later turns: a true anchor is done in 6 to 11, a false one never is."""
_PRICE = 1e-3
"""Of a share that a found sentence holds already: decides between sentences that fit alike, and nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceResult:
    """Accepted sentences, nearest to the floor first.

    Attributes:
        confidence: per sentence and token, the posterior probability among the candidates of its position, the other
            tokens being given; a sentence with a token below one half is not accepted; empty where the model has no closed form here.
        tested: rows that were run through the model for the exact test.
        steps: interior-point steps, the unit of the polynomial bound.
        finished: False if the clock ran out first.
        ordered: False if the model's first attention does not tell where a token stands: sentences are bags of tokens then.
        complete: True if the sentences explain every direction of the context spaces: nothing else is in the batch.
        missed: directions that stand out of noise and belong to none of the sentences; 0 where they are not counted.
    """

    sentences: tuple[Int64[Tensor, " length"], ...]
    confidence: tuple[Float[Tensor, " length"], ...] = ()
    tested: int
    steps: int = 0
    finished: bool
    ordered: bool = True
    complete: bool = False
    missed: int = 0


@dataclass(slots=True)
class _Found:
    rng: torch.Generator
    clock: Clock
    sentences: dict[Ids, float] = field(default_factory=dict)
    rejected: set[Ids] = field(default_factory=set)
    calibrations: dict[int, Calibration] = field(default_factory=dict)
    pool: dict[Ids, float] = field(default_factory=dict)
    looked_at: int = 0
    decision: BatchDecision | None = None
    chosen: set[Ids] = field(default_factory=set)
    decided: DecidedBatch | None = None
    wide: tuple[Int64[Tensor, " tokens"], ...] | None = None
    tested: int = 0
    steps: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceSearch:
    """What the search works with.

    Attributes:
        readers: places behind the first attention.
        batch_size: number of sentences to find, or None if unknown.
        lengths: lengths that sentences may have.
        closing: token that ends every sentence, or None.
        rounds: number of passes over all positions before the search gives up.
    """

    candidates: Candidates
    first: ObservedLayer
    readers: tuple[ObservedLayer, ...]
    model: Model
    block: Block
    batch_size: int | None
    lengths: tuple[int, ...]
    closing: int | None = None
    rounds: int = 2

    def run(self, *, rng: torch.Generator, clock: Clock) -> SentenceResult:
        """Tries every length by enumeration where that is cheap, then searches until all sentences are found."""
        found = _Found(rng=rng, clock=clock)
        hard = [length for length in self.lengths if not self._enumerate(length, found, rng)]
        if not hard or (self._enough(found) and not self._blurred()):
            return self._result(found, None, finished=True)
        if not self.candidates.positional:
            search = RelativeSearch.of(
                self.model,
                self.candidates.tokens[0],
                self.block,
                self.first,
                self.readers,
                longest=max(hard),
                rng=rng,
            )
            if search is None:
                return self._result(found, None, finished=True)
            finished = self._center(search, found, rng, clock)
            return replace(self._result(found, search.equations, finished=finished), ordered=search.ordered)
        pairs = Pairs.of(self.candidates)
        equations = attention_equations(
            self.model,
            pairs,
            self.block,
            self.first,
            self.readers,
            columns=enough_columns(pairs.count, len(pairs.at)),
            rng=rng,
        )
        if equations is None:
            finished = self._exchange(hard, found, rng, clock)
        else:
            finished = self._solve(equations, hard, found, rng, clock)
        if self._blurred() and not self._settled(found):
            # Last resort, if fewer are chosen than there are records.
            found.decided = self._refined(self._decided(found), found)
        return self._result(found, equations, finished=finished)

    def _center(self, search: RelativeSearch, found: _Found, rng: torch.Generator, clock: Clock) -> bool:
        """Sentences around every token, first those that no found sentence holds; False if the clock ran out."""
        for again in (False, True):
            for number, token in enumerate(search.tokens.tolist()):
                if any(token in ids for ids in found.sentences) is not again:
                    continue
                if clock.spent():
                    return False
                clock.progress(self._share(found), f"{len(found.sentences)} sentences found")
                row = search.through(number)
                if row is not None:
                    self._verify([search.tokens[row]], found, rng)
                if self._settled(found):
                    return True
        return True

    def _solve(
        self, equations: AttentionEquations, lengths: Sequence[int], found: _Found, rng: torch.Generator, clock: Clock
    ) -> bool:
        """Anchors of one position after the other; False if the clock ran out."""
        pairs, layout = equations.pairs, Layout.of(equations.pairs, lengths, self.closing)
        words = pairs.tokens.cpu()

        def judge(rows: Sequence[Tensor]) -> list[bool]:
            ids = [self._closed(words[row]) for row in rows]
            self._verify(ids, found, rng)
            return [tuple(one.tolist()) in found.sentences for one in ids]

        blurred = self._blurred()
        plausible = RANDOM if blurred else PLAUSIBLE
        for turn, family in self._schedule(pairs, max(lengths)):
            if clock.spent():
                return False
            if turn and blurred and pairs.count < self.first.space.inputs:
                # The batch has tokens that are no candidates: what is not proposed by now waits for them.
                break
            clock.progress(self._share(found), f"{len(found.sentences)} sentences found")
            used = self._used(pairs, found)
            anchors = family.unexplained(pairs, used) if turn == 0 else family.anchors
            if not len(anchors):
                continue
            # A price in the first turn would drive sentences from the pairs that they share with a found one.
            steps, cost = _STEPS[min(turn, 1)], used * (_PRICE if turn else 0.0)
            first = select(
                equations, layout, anchors.unsqueeze(1), cost=cost, steps=steps, judge=judge, plausible=plausible
            )
            found.steps += first.steps
            if turn and not self._enough(found):
                more = _with_confident(layout, pairs, anchors, first.shares)[~first.accepted]
                found.steps += select(
                    equations, layout, more, cost=cost, steps=steps, judge=judge, plausible=plausible
                ).steps
            if self._settled(found):
                break
        return True

    def _closed(self, ids: Int64[Tensor, " length"]) -> Int64[Tensor, " length"]:
        """The sentence with the closing token at its end, where that may stand there: shares that are not done round to others."""
        if self.closing is not None and bool((self.candidates.tokens[len(ids) - 1] == self.closing).any()):
            return torch.cat((ids[:-1], ids.new_tensor([self.closing])))
        return ids

    def _schedule(self, pairs: Pairs, longest: int) -> Iterator[tuple[int, _Family]]:
        """Turn and family, small ones first. One without a choice is left out: all sentences share its only pair.

        Every family of the first turn holds an anchor of some sentence: each sentence has one token at a position, each
        token of the batch one position or more. Later turns go through the positions again.
        """
        positions = [_Family(anchors=at, token=False) for at in pairs.at[:longest] if at.numel() > 1]
        words, number = pairs.tokens.unique(return_inverse=True)
        tokens = [_Family(anchors=(number == w).nonzero().flatten(), token=True) for w in range(len(words))]
        for family in sorted((*positions, *tokens), key=lambda each: (len(each.anchors), each.token)):
            yield 0, family
        for turn in range(1, self.rounds):
            for family in sorted(positions, key=lambda each: len(each.anchors)):
                yield turn, family

    def _used(self, pairs: Pairs, found: _Found) -> Float[Tensor, " pairs"]:
        """How many of the found sentences hold each pair."""
        reach = len(pairs.at)
        rows = [[*ids[:reach], *[-1] * (reach - len(ids))] for ids in found.sentences]
        held = torch.tensor(rows, dtype=torch.int64, device=pairs.tokens.device).view(-1, reach)
        return (held[:, pairs.places] == pairs.tokens).sum(0).double()

    def _share(self, found: _Found) -> float:
        """How much of the narrowest context space the found sentences explain."""
        inputs = max(reader.space.inputs for reader in self.readers)
        return min(1.0, sum(map(len, found.sentences)) / max(1, inputs))

    def _enough(self, found: _Found) -> bool:
        return self._share(found) >= 1.0 or (self.batch_size is not None and len(found.sentences) >= self.batch_size)

    def _blurred(self) -> bool:
        """Whether noise may hide more of a position than a wrong token elsewhere would add, its share of the attention."""
        return any(
            r.space.worst * max(self.lengths, default=0) > math.sqrt(r.space.rest / r.space.features)
            for r in self.readers
        )

    def _settled(self, found: _Found) -> bool:
        """Whether all is found. In a blurred batch it is if the sentences together leave nothing unexplained, or if as many as
        there are records pass at every position and leave less than one record, each of them needed."""
        if not self._blurred():
            return self._enough(found)
        grown = len(found.pool) >= max(1.0, _GROWTH * found.looked_at)
        if (grown or self._enough(found)) and len(found.pool) > found.looked_at:
            found.looked_at = len(found.pool)
            found.decided = self._decided(found)
        if found.decided is None:
            return False
        chosen = found.decided.sentences
        every = len(chosen) == self.batch_size and all(ids in found.sentences for ids in chosen)
        return found.decided.unexplained < (max(self.lengths) if every else 1)

    def _decided(self, found: _Found) -> DecidedBatch:
        """The likeliest of the pool; where as many as there are records leave less than one, they are wrong in few tokens and refined."""
        if not self.candidates.positional and len(found.sentences) == self.batch_size:
            # Each of them stands out from its neighbors, too.
            every = self._decision(found).of_all(list(found.sentences))
            if every is not None:
                return every
        likely = sorted(found.pool, key=found.pool.__getitem__)[:_POOL]
        chosen = self._decision(found).choose(likely, self.batch_size)
        if found.decided is not None and set(chosen.sentences) == found.chosen:
            return found.decided
        found.chosen = set(chosen.sentences)
        near = len(chosen.sentences) == self.batch_size and chosen.unexplained < max(self.lengths)
        return self._refined(chosen, found) if near else chosen

    def _refined(self, decided: DecidedBatch, found: _Found) -> DecidedBatch:
        """With the candidates; where that leaves less than one record, with tokens that the first test had to leave out, too."""
        decided = self._decision(found).refine(decided, self.candidates.tokens, self.closing, found.clock)
        if 0 < decided.unexplained < max(self.lengths):
            decided = self._decision(found).refine(decided, self._wide(found), self.closing, found.clock)
        self._verify([torch.tensor(ids) for ids in decided.sentences], found, found.rng)
        return decided

    def _wide(self, found: _Found) -> tuple[Tensor, ...]:
        """Candidates per position, with tokens that the first test had to leave out."""
        if found.wide is None:
            near = find_candidates(
                self.first,
                self.model,
                positions=len(self.candidates.tokens),
                rng=found.rng,
                false_per_position=_FALSE_PER_POSITION,
            )
            both = zip(near.tokens, self.candidates.tokens, strict=True)
            found.wide = tuple(torch.cat(tokens).unique() for tokens in both)
        return found.wide

    def _decision(self, found: _Found) -> BatchDecision:
        if found.decision is None:
            found.decision = BatchDecision.of(self.model, self.readers)
        return found.decision

    def _accepted(self, found: _Found) -> list[Ids]:
        """Sentences of which every position passes; of a blurred batch those that it needs, too, and all of them if they
        explain it: then a position that does not pass has lost a direction to the noise."""
        ranked = sorted(found.sentences, key=found.sentences.__getitem__)
        if not self._blurred():
            return ranked
        settled = self._settled(found)
        chosen = () if found.decided is None else found.decided.sentences
        return list(chosen) if settled else [ids for ids in ranked if ids in chosen]

    def _result(self, found: _Found, equations: AttentionEquations | None, *, finished: bool) -> SentenceResult:
        ranked = self._accepted(found)
        confidence: tuple[Tensor, ...] = ()
        complete = self._settled(found) if self._blurred() else self._share(found) >= 1.0
        if equations is not None:
            told = [(ids, self._confidence(equations, ids, ranked, found)) for ids in ranked]
            told = [(ids, sure) for ids, sure in told if float(sure.min()) > 0.5]
            complete = complete and len(told) == len(ranked)
            ranked, confidence = [ids for ids, _ in told], tuple(sure for _, sure in told)
        return SentenceResult(
            sentences=tuple(self.candidates.nearest.new_tensor(ids) for ids in ranked),
            confidence=confidence,
            tested=found.tested,
            steps=found.steps,
            finished=finished,
            complete=complete,
            missed=self._decision(found).left(ranked) if self._blurred() and not complete else 0,
        )

    def _confidence(
        self, equations: AttentionEquations, ids: Ids, every: Sequence[Ids], found: _Found
    ) -> Float[Tensor, " length"]:
        if not self._blurred():
            return equations.confidence(ids)
        others = [other for other in every if other != ids]
        return self._decision(found).confidence(ids, others, self.candidates.tokens)

    def _options(self, length: int) -> list[Tensor]:
        """Token ids per position for sentences of this length."""
        options = [self.candidates.tokens[p] for p in range(length)]
        if self.closing is not None and bool((options[-1] == self.closing).any()):
            options[-1] = options[-1].new_tensor([self.closing])
        return options

    def _enumerate(self, length: int, found: _Found, rng: torch.Generator) -> bool:
        options = self._options(length)
        count = math.prod(ids.numel() for ids in options)
        if count > _ENUMERATE_AT_MOST:
            return False
        if count:
            self._verify(list(torch.cartesian_prod(*options).reshape(count, length)), found, rng)
        return True

    def _verify(self, rows: Sequence[Int64[Tensor, " length"]], found: _Found, rng: torch.Generator) -> None:
        """Accepts those sentences of which every position passes; none is looked at twice."""
        seen = found.rejected | found.sentences.keys()
        new = [ids for ids in dict.fromkeys(tuple(row.tolist()) for row in rows) if ids not in seen]
        for length in sorted({len(ids) for ids in new}):
            self._verify_same_length([ids for ids in new if len(ids) == length], found, rng)

    def _verify_same_length(self, new: list[tuple[int, ...]], found: _Found, rng: torch.Generator) -> None:
        rows, length = torch.tensor(new), len(new[0])
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
                found.pool[ids] = value
                if good:
                    found.sentences[ids] = value
                else:
                    found.rejected.add(ids)

    def _exchange(self, lengths: Sequence[int], found: _Found, rng: torch.Generator, clock: Clock) -> bool:
        searches = {n: SwapSearch(options=self._options(n), reader=self.readers[0], model=self.model) for n in lengths}
        for _ in range(self.rounds):
            for search in searches.values():
                for anchor in search.anchor_positions():
                    for rows in search.proposals(anchor, rng):
                        self._verify(list(rows), found, rng)
                        if self._enough(found):
                            return True
                    if clock.spent():
                        return False
        return True
