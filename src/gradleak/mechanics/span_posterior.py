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
from gradleak.mechanics.language_prior import LanguagePrior
from gradleak.mechanics.span_evidence import Evidence, Given

_BEAM = 8
"""Prefixes of one record that are followed."""
_FROM_PRIOR = 4
"""Continuations of each prefix that the prior adds to those of the update."""
_ROUNDS = 12
_GAIN = 1e-6

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is sought.

    Attributes:
        evidence: None where the update is withheld, for the control.
        options: tokens per position that the update leaves open.
        closed: whether no other token can be in the batch; else the prior adds its own.
        records: number of records.
        lengths: of every record, where known; else any up to the number of positions.
    """

    evidence: Evidence | None
    prior: LanguagePrior
    options: tuple[Int64[Tensor, " tokens"], ...]
    closed: bool
    records: int
    lengths: tuple[int, ...] | None = None

    def given(self, evidence: Evidence | None, prior: LanguagePrior, *, length: int | None = None) -> Question:
        """The same of other evidence and prior; with ``length``, of records of that length, for without evidence none is likely long."""
        lengths = self.lengths if length is None else (length,) * self.records
        return replace(self, evidence=evidence, prior=prior, lengths=self.lengths or lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Records, and the logarithms that speak for them, in nats; finished: False if the clock ran out first."""

    records: tuple[Int64[Tensor, " length"], ...]
    log_evidence: float
    log_prior: float
    finished: bool


def likeliest(question: Question, clock: Clock, *, start: Sequence[Ids] = ()) -> Answer:
    """Ascent from nothing or from ``start``: at most ``records`` records of which none is empty."""
    return _Ascent.begun(question, clock, start).climb()


@dataclass(slots=True)
class _Record:
    ids: Ids = ()
    rows: list[Tensor] = field(default_factory=list)


@dataclass(slots=True)
class _Ascent:
    """The ascent so far.

    Attributes:
        changes: how often a record changed; ``seen``: that number when a step last looked at a record, in vain since if it still stands.
    """

    question: Question
    clock: Clock
    state: list[_Record]
    changes: int = 0
    seen: dict[tuple[str, int], int] = field(default_factory=dict)

    @staticmethod
    def begun(question: Question, clock: Clock, start: Sequence[Ids]) -> _Ascent:
        given = [_Record(ids, _rows(question.evidence, ids)) for ids in start[: question.records] if ids]
        more = [_Record(rows=_rows(question.evidence, ())) for _ in range(question.records - len(given))]
        return _Ascent(question, clock, given + more)

    def climb(self) -> Answer:
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

    def _answer(self, *, finished: bool) -> Answer:
        kept = [record for record in self.state if record.ids]
        evidence, prior = self.question.evidence, self.question.prior
        return Answer(
            records=tuple(torch.tensor(record.ids) for record in kept),
            log_evidence=evidence.together([record.rows for record in kept]) if evidence and kept else 0.0,
            log_prior=sum(float(prior.each(torch.tensor([record.ids])).sum()) for record in kept),
            finished=finished,
        )

    def _given(self, i: int) -> tuple[Given, ...]:
        others = [record.rows for j, record in enumerate(self.state) if j != i]
        return () if self.question.evidence is None else self.question.evidence.given(others)

    def _options(self, prefixes: Int64[Tensor, "prefixes before"]) -> Int64[Tensor, " options"]:
        """Of the update at this position, and the likeliest continuations of each prefix."""
        own = self.question.options[prefixes.shape[1]]
        if self.question.closed:
            return own
        likely = self.question.prior.following(prefixes)
        # Where all are alike none is likely.
        likely = likely[likely.amax(1) > likely.amin(1)]
        return torch.cat((own, likely.topk(_FROM_PRIOR, dim=1).indices.flatten())).unique() if len(likely) else own

    def _regrown(self, i: int) -> None:
        """The record grown anew, if that is better."""
        given = self._given(i)
        longest = len(self.question.options)
        fixed = None if self.question.lengths is None else self.question.lengths[i]
        prefixes = torch.empty(1, 0, dtype=torch.int64)
        value = torch.zeros(1, dtype=torch.float64)
        own = [torch.zeros(1, 0, each.frame.shape[0], dtype=torch.float64) for each in given]
        best: list[Ids] = []
        for p in range(fixed or longest):
            options = self._options(prefixes)
            if not len(options):
                break
            total = value.unsqueeze(1) + self.question.prior.following(prefixes)[:, options]
            rows = torch.cat(
                (prefixes.repeat_interleave(len(options), 0), options.repeat(len(prefixes)).unsqueeze(1)), dim=1
            )
            units: list[Tensor] = []
            if self.question.evidence is not None:
                for place, seen, before in zip(given, self.question.evidence.rows(rows), own, strict=True):
                    gain, unit = place.extend(seen[:, -1].unflatten(0, total.shape), before)
                    total = total + gain
                    units.append(unit)
            value, at = total.flatten().topk(min(_BEAM, total.numel()))
            parents, children = at // len(options), at % len(options)
            prefixes = rows[at]
            own = [
                torch.cat((before[parents], unit[parents, children].unsqueeze(1)), dim=1)
                for before, unit in zip(own, units, strict=True)
            ]
            best += map(tuple, prefixes.tolist()) if p + 1 == fixed or fixed is None else ()
        self._take(i, given, best)

    def _exchanged(self, i: int) -> None:
        """The record with single tokens exchanged or its end cut, if that is better."""
        given = self._given(i)
        for p in range(len(self.state[i].ids)):
            ids = self.state[i].ids
            options = self._options(torch.tensor([ids[:p]], dtype=torch.int64).reshape(1, p))
            self._take(i, given, [(*ids[:p], token, *ids[p + 1 :]) for token in options.tolist()])
        if self.question.lengths is None:
            ids = self.state[i].ids
            self._take(i, given, [ids[:end] for end in range(1, len(ids))])

    def _take(self, i: int, given: Sequence[Given], proposals: Sequence[Ids]) -> None:
        """Puts the best of these in the place of the record, if it is better."""
        now = self.state[i]
        value = -torch.inf
        if now.ids:
            value = float(self._value(given, torch.tensor([now.ids]), [rows.unsqueeze(0) for rows in now.rows]))
        for length in sorted({len(ids) for ids in proposals}):
            ids = torch.tensor([each for each in dict.fromkeys(proposals) if len(each) == length])
            rows = [] if self.question.evidence is None else self.question.evidence.rows(ids)
            values = self._value(given, ids, rows)
            at = int(values.argmax())
            if float(values[at]) > value + _GAIN:
                value = float(values[at])
                self.changes += 1
                self.state[i] = _Record(tuple(ids[at].tolist()), [each[at] for each in rows])

    def _value(
        self, given: Sequence[Given], ids: Int64[Tensor, "sentences length"], rows: Sequence[Tensor]
    ) -> Float[Tensor, " sentences"]:
        value = self.question.prior.each(ids).sum(1)
        for place, seen in zip(given, rows, strict=True):
            value = value + place.score(seen)
        return value


def _rows(evidence: Evidence | None, ids: Ids) -> list[Tensor]:
    """Inputs of one record at every place; none of an empty one."""
    if evidence is None:
        return []
    if ids:
        return [rows[0] for rows in evidence.rows(torch.tensor([ids]))]
    return [torch.zeros(0, signal.directions.shape[0], dtype=torch.float64) for signal in evidence.signals]
