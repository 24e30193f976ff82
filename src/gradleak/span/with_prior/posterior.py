"""Why: records that are likeliest for an update and a language model together. One record is grown anew at a time, all others given:
what is then left to explain is mostly its own. Single tokens are exchanged, and it is begun again until nothing changes. Every change
raises the sum of both logarithms, in nats, with no weight between them. Must not know labels, losses or where a prior comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.span.decoder.token_cache import TokenCache
from gradleak.span.language.language_model import LanguageModel
from gradleak.span.likelihood.marginal import Conditioned, Evidence

_BEAM = 8
"""Prefixes of one record that are followed."""
_FROM_PRIOR = 4
"""Continuations of each prefix that the prior adds to those of the update."""
_CLOSER = 32
"""Continuations, or exchanges of a token, that are looked at in later blocks, the best by the first block's places."""
_ROUNDS = 12
_GAIN = 1e-6

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is sought.

    Attributes:
        evidence: None where the update is withheld, for the control.
        options: tokens per position that the update leaves open.
        closed: whether no other token can be in the batch; else the prior adds its own.
        records: number of records.
        lengths: of every record, where known; else any up to the number of positions.
    """

    evidence: Evidence | None
    prior: LanguageModel
    options: tuple[Int64[Tensor, " tokens"], ...]
    closed: bool
    records: int
    lengths: tuple[int, ...] | None = None

    def tensor(self, ids: Sequence[object]) -> Tensor:
        """Token ids where the options are."""
        return self.options[0].new_tensor(ids)

    def withheld(self, length: int) -> Problem:
        """The same without anything that the update told, its options included. Without evidence no length is likelier than one token, so
        records get a given one."""
        nothing = (self.options[0][:0],) * len(self.options)
        lengths = self.lengths or (length,) * self.records
        return replace(self, evidence=None, options=nothing, closed=False, lengths=lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """Records, and the logarithms that speak for them, in nats; finished: False if the clock ran out first."""

    records: tuple[Int64[Tensor, " length"], ...]
    log_evidence: float
    log_prior: float
    finished: bool


def maximize_posterior(problem: Problem, clock: Clock, *, start: Sequence[Ids] = ()) -> Solution:
    """Ascent from nothing or from ``start``: at most ``records`` records of which none is empty."""
    return _Ascent.begun(problem, clock, start).climb()


@dataclass(slots=True)
class _Record:
    ids: Ids = ()
    rows: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Beam:
    """Prefixes of one record, the sum of both logarithms for each, and orthonormal rows of each at every place."""

    ids: Int64[Tensor, "prefixes length"]
    value: Float[Tensor, " prefixes"]
    own: list[Tensor]

    @staticmethod
    def empty(given: Sequence[Conditioned], device: torch.device) -> _Beam:
        own = [each.frame.new_zeros(1, 0, each.frame.shape[0]) for each in given]
        none = torch.empty(1, 0, dtype=torch.int64, device=device)
        return _Beam(none, torch.zeros(1, dtype=torch.float64, device=device), own)


@dataclass(slots=True)
class _Ascent:
    """The ascent so far.

    Attributes:
        kept: serves the first ``near`` places of the evidence without running the model; None where that cannot be.
        far: the other places.
        changes: how often a record changed; ``seen``: that number when a step last looked at a record, in vain since if it still stands.
    """

    problem: Problem
    clock: Clock
    state: list[_Record]
    kept: TokenCache | None = None
    near: int = 0
    far: Evidence | None = None
    changes: int = 0
    seen: dict[tuple[str, int], int] = field(default_factory=dict)

    @staticmethod
    def begun(problem: Problem, clock: Clock, start: Sequence[Ids]) -> _Ascent:
        evidence = problem.evidence
        given = [_Record(ids, _rows(evidence, ids)) for ids in start[: problem.records] if ids]
        more = [_Record(rows=_rows(evidence, ())) for _ in range(problem.records - len(given))]
        begun = _Ascent(problem, clock, given + more, far=evidence)
        if evidence is not None:
            tokens = torch.cat([*problem.options, *(problem.tensor(ids) for ids in start if ids)]).unique().tolist()
            paths = [signal.path for signal in evidence.signals]
            begun.kept = TokenCache.of(evidence.model, paths, tokens, len(problem.options)) if tokens else None
            begun.near = 0 if begun.kept is None else len(begun.kept.paths)
            begun.far = evidence.split(begun.near)[1]
        return begun

    def climb(self) -> Solution:
        finished = False
        for number in range(_ROUNDS):
            before = self.changes
            for step in (self._regrown, self._exchanged):
                for i in range(len(self.state)):
                    if self.clock.spent():
                        return self._answer(finished=False)
                    self.clock.progress(number / _ROUNDS, f"round {number + 1}, record {i + 1} of {len(self.state)}")
                    if self.seen.get((step.__name__, i)) != self.changes:
                        step(i)
                        self.seen[step.__name__, i] = self.changes
            if self.changes == before:
                finished = True
                break
        return self._answer(finished=finished)

    def _answer(self, *, finished: bool) -> Solution:
        kept = [record for record in self.state if record.ids]
        evidence, prior = self.problem.evidence, self.problem.prior
        return Solution(
            records=tuple(self.problem.tensor(record.ids) for record in kept),
            log_evidence=evidence.together([record.rows for record in kept]) if evidence and kept else 0.0,
            log_prior=sum(float(prior.each(self.problem.tensor([record.ids])).sum()) for record in kept),
            finished=finished,
        )

    def _given(self, i: int) -> tuple[Conditioned, ...]:
        others = [record.rows for j, record in enumerate(self.state) if j != i]
        return () if self.problem.evidence is None else self.problem.evidence.given(others)

    def _options(self, prefixes: Int64[Tensor, "prefixes before"]) -> Int64[Tensor, " options"]:
        """Of the update at this position, and the likeliest continuations of each prefix."""
        own = self.problem.options[prefixes.shape[1]]
        if self.problem.closed:
            return own
        likely = self.problem.prior.following(prefixes)
        # Where all are alike none is likely.
        likely = likely[likely.amax(1) > likely.amin(1)]
        return torch.cat((own, likely.topk(_FROM_PRIOR, dim=1).indices.flatten())).unique() if len(likely) else own

    def _regrown(self, i: int) -> None:
        """The record grown anew, if that is better."""
        given = self._given(i)
        fixed = None if self.problem.lengths is None else self.problem.lengths[i]
        front = _Beam.empty(given, self.problem.options[0].device)
        best, highest = front.ids[0], -torch.inf
        for p in range(fixed or len(self.problem.options)):
            options = self._options(front.ids)
            if not len(options):
                break
            front = self._grown(front, options, given)
            if (fixed is None or p + 1 == fixed) and float(front.value[0]) > highest:
                best, highest = front.ids[0], float(front.value[0])
        if len(best):
            self._take(i, given, [tuple(best.tolist())])

    def _grown(self, front: _Beam, options: Int64[Tensor, " options"], given: Sequence[Conditioned]) -> _Beam:
        """The best prefixes one token longer: all are weighed by the near places, the best of these by the others, too."""
        total = front.value.unsqueeze(1) + self.problem.prior.following(front.ids)[:, options]
        shape, units = total.shape, []
        if self.kept is not None:
            near = self.kept.extend(self.kept.numbers(front.ids), self.kept.numbers(options))
            for place, seen, before in zip(given, near, front.own, strict=False):
                gain, unit = place.extend(seen, before)
                total = total + gain
                units.append(unit)
        count = _CLOSER if self.kept is not None and self.far is not None and self.far.signals else total.numel()
        value, at = total.flatten().topk(min(count, total.numel()))
        parents, children = at // shape[1], at % shape[1]
        ids = torch.cat((front.ids[parents], options[children].unsqueeze(1)), dim=1)
        units = [unit[parents, children] for unit in units]
        far = [] if self.far is None else self.far.rows(ids)
        for place, seen, before in zip(given[self.near :], far, front.own[self.near :], strict=True):
            gain, unit = place.extend(seen[:, -1:], before[parents])
            value = value + gain[:, 0]
            units.append(unit[:, 0])
        value, best = value.topk(min(_BEAM, len(value)))
        own = [
            torch.cat((before[parents[best]], unit[best].unsqueeze(1)), dim=1)
            for before, unit in zip(front.own, units, strict=True)
        ]
        return _Beam(ids[best], value, own)

    def _exchanged(self, i: int) -> None:
        """The record with single tokens exchanged or its end cut, if that is better."""
        given = self._given(i)
        for p in range(len(self.state[i].ids)):
            ids = self.state[i].ids
            options = self._options(self.problem.tensor([ids[:p]]).reshape(1, p))
            trials = self.problem.tensor(ids).repeat(len(options), 1)
            trials[:, p] = options
            self._take(i, given, [tuple(each) for each in self._plausible(trials, given).tolist()])
        if self.problem.lengths is None:
            ids = self.state[i].ids
            self._take(i, given, [ids[:end] for end in range(1, len(ids))])

    def _plausible(
        self, trials: Int64[Tensor, "trials length"], given: Sequence[Conditioned]
    ) -> Int64[Tensor, "some length"]:
        """The best of these by the near places."""
        if self.kept is None or self.far is None or not self.far.signals or len(trials) <= _CLOSER:
            return trials
        near = self.kept.rows(self.kept.numbers(trials))
        return trials[self._value(given[: self.near], trials, near).topk(_CLOSER).indices]

    def _take(self, i: int, given: Sequence[Conditioned], proposals: Sequence[Ids]) -> None:
        """Puts the best of these in the place of the record, if it is better."""
        now = self.state[i]
        value = -torch.inf
        if now.ids:
            value = float(self._value(given, self.problem.tensor([now.ids]), [rows.unsqueeze(0) for rows in now.rows]))
        for length in sorted({len(ids) for ids in proposals}):
            ids = self.problem.tensor([each for each in dict.fromkeys(proposals) if len(each) == length])
            rows = [] if self.problem.evidence is None else self.problem.evidence.rows(ids)
            values = self._value(given, ids, rows)
            at = int(values.argmax())
            if float(values[at]) > value + _GAIN:
                value = float(values[at])
                self.changes += 1
                self.state[i] = _Record(tuple(ids[at].tolist()), [each[at] for each in rows])

    def _value(
        self, given: Sequence[Conditioned], ids: Int64[Tensor, "sentences length"], rows: Sequence[Tensor]
    ) -> Float[Tensor, " sentences"]:
        value = self.problem.prior.each(ids).sum(1)
        for place, seen in zip(given, rows, strict=True):
            value = value + place.score(seen)
        return value


def _rows(evidence: Evidence | None, ids: Ids) -> list[Tensor]:
    """Inputs of one record at every place; none of an empty one."""
    if evidence is None:
        return []
    if ids:
        return [rows[0] for rows in evidence.rows(torch.tensor([ids]))]
    return [signal.directions.new_zeros(0, signal.directions.shape[0]) for signal in evidence.signals]
