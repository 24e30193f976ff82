"""Span: tokens whose layer-1 input lies in the column space of the attention gradients, put in order by the next layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.mechanics.certificate import Certificate, certify
from gradleak.mechanics.embedding_channel import EmbeddingChannel
from gradleak.mechanics.span_assembly import Assembled, Assembly
from gradleak.mechanics.span_beyond import join_placed
from gradleak.mechanics.span_candidates import candidates_of
from gradleak.mechanics.span_case import SpanCase, closing_token, steps_by_adamw
from gradleak.mechanics.span_context import Attended, Grid, Replayed, open_first
from gradleak.mechanics.span_growth import Grown, grow
from gradleak.mechanics.span_noisy import explain_noisy
from gradleak.mechanics.span_readers import (
    Candidates,
    Reader,
    context_readers,
    first_reader,
    input_drift,
)

_BLURRED = 30.0
"""Ratio of the null's cut to a member's residual below which noise may have hidden directions altogether."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span(Attack):
    """Exact recovery from the low rank of linear-layer gradients, without labels, lengths or a language prior.

    The gradient of a linear layer is G = Xᵀ D, so with fewer tokens than the width its column space holds the inputs
    x_i and almost surely no other vector of the vocabulary. Tokens are tested at the first attention's input; sequences
    are tested behind it, where the input depends on the other tokens: prefix by prefix in a causal model, as whole
    sentences otherwise. The recovered batch is certified by recomputing the update.

    Args:
        beam: most prefixes of one length that are kept, per record of the batch.
        rounds: passes of the sentence search over all positions before it gives up (bidirectional models).

    Guarantees:
        EXACT is reported only if the recomputed update equals the released one up to rounding.
        Where fewer records than the batch holds are found, and they cover less than half of the tokens that the rows of the
        embedding's gradient tell exactly, that bag of tokens is returned instead.
        Not visible, whatever the effort: how often a record is repeated; a record that is a prefix of another one; the
        last token of each record under a causal language-model loss.
        Of AdamW one step on float32 weights is undone, as far as small gradients allow; what drowns is not proposed.

    Source: Petrov et al., arXiv 2405.15586 (DAGER).
    Deviations: the rank cut and the acceptance thresholds are derived from number format, known noise and the
        vocabulary's own null law; the second test reads the attention's output and the feed-forward input of block 1.
    """

    summary: ClassVar[str] = "Tokens in the column space of the attention gradients, ordered by the next layer; exact."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject"})
    uses: ClassVar[frozenset[str]] = frozenset({"trainer", "stages", "batch_size", "seq_len", "mask", "labels"})

    beam: int = 64
    rounds: int = 4

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        case = SpanCase.of(update, view)
        drift = input_drift(case.model, case.subject.anatomy.blocks[0].attention_inputs, rng)
        evidence = {"noise_std": case.noise_std, "summands": case.summands, "drift": drift}
        first = first_reader(case.readable, case.subject.anatomy, **evidence)
        try:
            found = self._search(case, first, evidence, rng, clock)
        except NotApplicableError as reason:
            found = _beyond(case, str(reason), rng, clock) or _drowned(case, first, rng, clock)
            if found is None:
                raise
            return found
        if found.ordered and len(found.records) == case.batch_size and found.status is not Status.UNDECIDED:
            return found
        bag = _bag_of_embeddings(case, found.message)
        if bag is None or (found.status is not Status.UNDECIDED and _covers_half(found.records, bag.records[0])):
            return found
        return _beyond(case, found.message, rng, clock) or bag

    def _search(
        self, case: SpanCase, first: Reader, evidence: Mapping[str, Any], rng: torch.Generator, clock: Clock
    ) -> Reconstruction:
        candidates = candidates_of(case, first, rng)
        if not candidates.length():
            return _drowned(case, first, rng, clock) or Reconstruction(
                status=Status.NOTHING_FOUND,
                message=f"No token of the vocabulary lies in the span of rank {first.space.rank} of {first.space.features}.",
                adapted=case.adapted(),
                statistics=_statistics(first, (), candidates),
            )
        readers = context_readers(case.readable, case.model, **evidence)
        if not readers:
            return _tokens_only(
                case,
                candidates,
                _statistics(first, (), candidates),
                "no layer behind the first attention tells their order",
            )
        if case.subject.anatomy.kind == "decoder":
            outcome = self._grow(case, first, candidates, readers, rng, clock)
        else:
            outcome = self._assemble(case, first, candidates, readers, rng, clock)
        statistics = _statistics(first, readers, candidates) | dict(outcome.statistics)
        if not outcome.records and outcome.status is not Status.BUDGET_SPENT:
            return _tokens_only(case, candidates, statistics, "no sequence of them passes behind the first attention")
        return _conclude(case, outcome, statistics, rng, clock)

    def _grow(
        self,
        case: SpanCase,
        first: Reader,
        candidates: Candidates,
        readers: tuple[Reader, ...],
        rng: torch.Generator,
        clock: Clock,
    ) -> _Outcome:
        beam = self.beam * (case.batch_size or 16)

        def growth(candidates: Candidates) -> Grown:
            grid = Grid.of(candidates, case.model.vocab_size, rng)
            attended = Attended.of(grid, readers, case.model, rng)
            continuations = attended or Replayed(grid=grid, readers=readers, model=case.model)
            return grow(grid, continuations, readers[-1], case.model, beam=beam, at_most=case.batch_size, clock=clock)

        if not candidates.tokens[0].numel():
            candidates = open_first(candidates, readers, case.model, rng)
        grown = growth(candidates)
        outcome = _outcome_of_growth(grown, case.batch_size)
        # Inputs that drifted over local steps leave directions that are no tokens, and an undone AdamW step noise of many sizes.
        plain = case.model.parameters is None and case.readable is case.update and _has_room(first)
        blurred = plain and candidates.null_cut <= _BLURRED * first.space.typical
        return _under_noise(case, first, outcome, growth, rng, clock) if blurred else outcome

    def _assemble(
        self,
        case: SpanCase,
        first: Reader,
        candidates: Candidates,
        readers: tuple[Reader, ...],
        rng: torch.Generator,
        clock: Clock,
    ) -> _Outcome:
        closing = closing_token(case.subject)
        assembled = Assembly(
            candidates=candidates,
            first=first,
            readers=readers,
            model=case.model,
            block=case.subject.anatomy.blocks[0],
            batch_size=case.batch_size,
            lengths=_lengths(case, candidates, closing),
            closing=closing,
            rounds=self.rounds,
        ).run(rng=rng, clock=clock)
        return _outcome_of_assembly(assembled, case.batch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    records: tuple[Tensor, ...]
    status: Status
    message: str
    statistics: Mapping[str, float]
    ordered: bool = True


def _under_noise(
    case: SpanCase,
    first: Reader,
    outcome: _Outcome,
    growth: Callable[[Candidates], Grown] | None,
    rng: torch.Generator,
    clock: Clock,
) -> _Outcome:
    """This outcome of a search token by token, or that of a joint one where it leaves less unexplained of what stands out."""
    tested = int(outcome.statistics.get("tested", 0.0))
    found = explain_noisy(case, first, outcome.records, tested=tested, growth=growth, rng=rng, clock=clock)
    if found is None:
        return outcome
    note = "all that stands out of the noise is explained"
    if found.unexplained:
        note = (
            f"{found.unexplained} directions stand out of the noise that no proposed token explains: how the records go on "
            "cannot be told, and none is claimed to be complete"
        )
    how = f"{len(found.sequences)} sequences joined from {found.candidates} pairs of token and position"
    ended = _status(bool(found.sequences), found.finished and outcome.status is not Status.BUDGET_SPENT)
    too_many = case.batch_size is not None and len(found.sequences) > case.batch_size
    if too_many:
        note += f"; {case.batch_size} records cannot hold so many, and only their tokens are proposed"
    return _Outcome(
        records=(torch.cat(found.sequences).unique(),) if too_many else found.sequences,
        ordered=not too_many,
        status=Status.UNDECIDED if found.unexplained and ended is Status.CONVERGED else ended,
        message=f"{how if found.candidates else outcome.message}; {note}",
        statistics={
            **outcome.statistics,
            "tested": float(found.tested),
            "unexplained_directions": float(found.unexplained),
        },
    )


def _has_room(first: Reader) -> bool:
    """A joint search needs dimensions that no token explains: what fills more than half is not sought among all pairs."""
    return 2 * first.space.rank <= first.space.features


def _drowned(case: SpanCase, first: Reader, rng: torch.Generator, clock: Clock) -> Reconstruction | None:
    """What a joint search tells where noise is such that no token passes on its own; None if nothing stands out."""
    if case.subject.anatomy.kind != "decoder" or not _has_room(first):
        return None
    nothing = _Outcome(records=(), status=Status.NOTHING_FOUND, message="", statistics={})
    outcome = _under_noise(case, first, nothing, None, rng, clock)
    return _conclude(case, outcome, dict(outcome.statistics), rng, clock) if outcome.records else None


def _beyond(case: SpanCase, reason: str, rng: torch.Generator, clock: Clock) -> Reconstruction | None:
    """What the tables of tokens and positions tell where the spans are full: sentences, or a bag of tokens; None if nothing."""
    bag = _bag_of_embeddings(case, reason)
    if bag is None or case.batch_size is None or case.seq_len is None:
        return bag
    joined = join_placed(case.update, case.model, records=case.batch_size, positions=case.seq_len, rng=rng, clock=clock)
    records = () if joined is None else joined.supported()
    if joined is None or not _covers_half(records, bag.records[0]):
        return bag
    undecided = case.batch_size * case.seq_len - sum(len(record) for record in records)
    return Reconstruction(
        records=records,
        status=_status(True, joined.finished),
        message=f"{reason} Tokens were placed by the gradients of the token and position tables and joined by what the first "
        f"blocks prefer: {len(records)} sequences, likely and not proven; up to {undecided} tokens cannot be told.",
        adapted=case.adapted(),
        statistics={"tested": float(joined.tested), "distinct_tokens": float(bag.records[0].numel())},
    )


def _bag_of_embeddings(case: SpanCase, reason: str) -> Reconstruction | None:
    """The tokens from the rows of the embedding's gradient; None if it is not shared or does not tell them exactly."""
    channel = EmbeddingChannel.of(case.update, case.subject.anatomy)
    if channel is None or not channel.support.exact or not channel.support.ids.numel():
        return None
    support = channel.support
    return Reconstruction(
        records=(support.ids,),
        ordered=False,
        status=Status.CONVERGED,
        message=f"{reason} The rows of the embedding's gradient tell {support.ids.numel()} tokens, without order.",
        statistics={"distinct_tokens": float(support.ids.numel())},
    )


def _covers_half(records: tuple[Tensor, ...], bag: Tensor) -> bool:
    found = torch.cat(records).unique() if records else bag[:0]
    return 2 * int(torch.isin(bag, found).sum()) >= len(bag)


def _lengths(case: SpanCase, candidates: Candidates, closing: int | None) -> tuple[int, ...]:
    """Lengths that sentences may have: known ones; those where the closing token fits; else all, longest first."""
    filled = 0
    for ids in candidates.tokens:
        if not ids.numel():
            break
        filled += 1
    mask = case.view.get("mask")
    if mask is not None:
        return tuple(n for n in sorted({int(row.sum()) for row in mask}) if n <= filled)
    ends = [] if closing is None else [p + 1 for p in range(filled) if bool((candidates.tokens[p] == closing).any())]
    return tuple(ends) or tuple(range(filled, 0, -1))


def _outcome_of_growth(grown: Grown, batch_size: int | None) -> _Outcome:
    records = grown.sequences
    notes = [f"{len(records)} sequences grown" + (f" for {batch_size} records" if batch_size else "")]
    if grown.crowded:
        notes.append("prefixes had to be dropped for their number")
    if batch_size is not None and len(records) < batch_size:
        notes.append("a repeated record or one that is a prefix of another is invisible")
    return _Outcome(
        records=records,
        status=_status(bool(records), grown.finished),
        message="; ".join(notes),
        statistics={"tested": float(grown.tested), "accepted": float(grown.leaves)},
    )


def _outcome_of_assembly(assembled: Assembled, batch_size: int | None) -> _Outcome:
    records = assembled.sentences if batch_size is None else assembled.sentences[:batch_size]
    notes = [f"{len(records)} sentences assembled" + (f" for {batch_size} records" if batch_size else "")]
    if batch_size is not None and len(records) < batch_size:
        notes.append("a repeated record is invisible; the search is not exhaustive")
    statistics = {"tested": float(assembled.tested), "accepted": float(len(assembled.sentences))}
    if assembled.confidence:
        statistics |= {
            "least_confidence": min(float(sure.min()) for sure in assembled.confidence),
            "complete": float(assembled.complete),
        }
    return _Outcome(
        records=records,
        status=_status(bool(records), assembled.finished),
        message="; ".join(notes),
        statistics=statistics,
    )


def _status(found: bool, finished: bool) -> Status:
    if not finished:
        return Status.BUDGET_SPENT
    return Status.CONVERGED if found else Status.NOTHING_FOUND


def _tokens_only(case: SpanCase, candidates: Candidates, statistics: dict[str, float], why: str) -> Reconstruction:
    """What the first test alone gives: the nearest token per position for a single record, else a bag of tokens."""
    single = case.batch_size == 1 and candidates.positional
    bag = candidates.bag()
    return Reconstruction(
        records=(candidates.nearest[: candidates.length()].clone() if single else bag,),
        ordered=single,
        status=Status.CONVERGED,
        message=f"{bag.numel()} tokens pass at the first attention, but {why}: "
        + ("the nearest token at each position, unconfirmed." if single else "a bag of tokens, without order."),
        adapted=case.adapted(),
        statistics=statistics,
    )


def _statistics(first: Reader, readers: tuple[Reader, ...], candidates: Candidates) -> dict[str, float]:
    counts = [float(ids.numel()) for ids in candidates.tokens[: candidates.length()]]
    found = {
        "rank_first": float(first.space.rank),
        "width": float(first.space.features),
        "noise_over_expected": first.space.noise,
        "positions": float(len(counts)),
        "candidates_mean": sum(counts) / len(counts) if counts else 0.0,
        "candidates_max": max(counts, default=0.0),
        "null_cut": candidates.null_cut,
    }
    for number, reader in enumerate(readers, start=1):
        found[f"rank_context_{number}"] = float(reader.space.rank)
    return found


def _conclude(
    case: SpanCase, outcome: _Outcome, statistics: dict[str, float], rng: torch.Generator, clock: Clock
) -> Reconstruction:
    """Adds the certificate where it can be had, and says what no effort could have shown."""
    certificate = _certificate(case, outcome, rng, clock)
    exact = certificate is not None and certificate.exact
    message = outcome.message
    if case.subject.loss == "causal-lm":
        message += "; the last token of a record has no loss and no reader, so it is invisible to this attack"
    if case.subject.loss == "masked-lm":
        message += "; masked positions show what the model read, not what was hidden"
    return Reconstruction(
        records=outcome.records,
        ordered=outcome.ordered,
        labels=None if certificate is None else certificate.labels,
        status=Status.EXACT if exact else outcome.status,
        message=message + ".",
        certificate=None if certificate is None else certificate.error,
        adapted=case.adapted(),
        statistics=statistics,
    )


def _has_dropout(case: SpanCase) -> bool:
    trainer = case.view.get("trainer")
    return trainer is not None and trainer.training.dropout


def _certificate(case: SpanCase, outcome: _Outcome, rng: torch.Generator, clock: Clock) -> Certificate | None:
    trainer = case.view.get("trainer")
    if trainer is None or case.batch_size is None or case.seq_len is None or case.stages or _has_dropout(case):
        return None
    if steps_by_adamw(trainer) and case.subject.loss == "classification":
        # Signs of the head's gradient do not tell the labels, and to try them all costs a gradient each.
        return None
    labels = case.view.get("labels")
    known = labels.tolist() if labels is not None and labels.ndim == 1 else None
    return certify(
        case.update,
        trainer,
        outcome.records,
        labels=known,
        batch_size=case.batch_size,
        seq_len=case.seq_len,
        rng=rng,
        clock=clock,
    )
