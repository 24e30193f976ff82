"""Whatever searched, what came of it is told in one way: records, a status, words, numbers and, where it can be had, the
certificate. Must not know how tokens or sequences are searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.span.candidates.types import Candidates
from gradleak.span.decoder.prefix_search import SearchResult
from gradleak.span.encoder.sentence_search import SentenceResult
from gradleak.span.outcome.certificate import Certificate, certify
from gradleak.span.outcome.next_tokens import records_by_next_tokens
from gradleak.span.outcome.recombination import recombinations
from gradleak.span.reading.evidence import AttackInput, steps_by_adamw
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, ObservedLayer
from gradleak.span.statistics import MISSED_DIRECTIONS, NULL_CUT


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    records: tuple[Tensor, ...]
    status: Status
    message: str
    statistics: Mapping[str, float]
    ordered: bool = True
    starts: tuple[int, ...] = ()
    confidence: tuple[Tensor, ...] = ()
    pool: tuple[Tensor, ...] = ()


def outcome_of_growth(grown: SearchResult, batch_size: int | None) -> Outcome:
    records = grown.sequences
    notes = [f"{len(records)} sequences grown" + (f" for {batch_size} records" if batch_size else "")]
    if any(grown.starts):
        notes.append(f"{sum(start > 0 for start in grown.starts)} of them begin behind padding or another document")
    if grown.crowded:
        notes.append("prefixes had to be dropped for their number")
    if batch_size is not None and len(records) < batch_size:
        notes.append("a repeated record, or one that is a prefix of another, has no direction of its own")
    if batch_size is not None and len(records) > batch_size:
        notes.append(
            "each explains directions of its own, so records hold several documents that do not see each other"
        )
    if grown.missed:
        notes.append(f"at least {grown.missed} directions of the update belong to tokens that were not found")
    return Outcome(
        records=records,
        status=status_of(bool(records), grown.finished),
        message="; ".join(notes),
        statistics={
            "tested": float(grown.tested),
            "accepted": float(grown.leaves),
            MISSED_DIRECTIONS: float(grown.missed),
        },
        confidence=passed_every_test(records),
        starts=grown.starts,
        pool=grown.pool,
    )


def passed_every_test(records: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Confidence of tokens of which the tests let any wrong one pass at a known rate."""
    return tuple(torch.full((len(ids),), 1.0 - FALSE_ALARM_RATE, dtype=torch.float64) for ids in records)


def outcome_of_assembly(assembled: SentenceResult, batch_size: int | None) -> Outcome:
    records = assembled.sentences if batch_size is None else assembled.sentences[:batch_size]
    notes = [f"{len(records)} sentences assembled" + (f" for {batch_size} records" if batch_size else "")]
    if batch_size is not None and len(records) < batch_size:
        notes.append("a repeated record has no direction of its own; the search is not exhaustive")
    if assembled.missed:
        notes.append(f"at least {assembled.missed} directions of the update belong to tokens that were not found")
    if not assembled.ordered:
        notes.append("the first attention reads no positions: the tokens of each record, in any order")
    statistics = {
        "tested": float(assembled.tested),
        "accepted": float(len(assembled.sentences)),
        MISSED_DIRECTIONS: float(assembled.missed),
    }
    if assembled.confidence:
        statistics |= {
            "least_confidence": min(float(sure.min()) for sure in assembled.confidence),
            "complete": float(assembled.complete),
        }
    return Outcome(
        records=records,
        ordered=assembled.ordered,
        status=status_of(bool(records), assembled.finished),
        message="; ".join(notes),
        statistics=statistics,
        confidence=assembled.confidence[: len(records)],
    )


def status_of(found: bool, finished: bool) -> Status:
    if not finished:
        return Status.BUDGET_SPENT
    return Status.CONVERGED if found else Status.NOTHING_FOUND


def statistics_of(first: ObservedLayer, readers: tuple[ObservedLayer, ...], candidates: Candidates) -> dict[str, float]:
    counts = [float(ids.numel()) for ids in candidates.tokens[: candidates.length()]]
    found = {
        "rank_first": float(first.space.inputs),
        "width": float(first.space.features),
        "noise_over_expected": first.space.noise,
        "positions": float(len(counts)),
        "candidates_mean": sum(counts) / len(counts) if counts else 0.0,
        "candidates_max": max(counts, default=0.0),
        NULL_CUT: candidates.null_cut,
    }
    for number, reader in enumerate(readers, start=1):
        found[f"rank_context_{number}"] = float(reader.space.inputs)
    return found


def conclude(
    case: AttackInput, outcome: Outcome, statistics: dict[str, float], rng: torch.Generator, clock: Clock
) -> Reconstruction:
    """Adds last tokens and the certificate where they can be had; a set that does not certify is recombined, or is no result of the search.

    Guarantees:
        Where the client can be replayed, the status is CONVERGED no more: EXACT, or UNDECIDED and without probabilities of tokens.
    """
    outcome = _with_last_tokens(case, outcome)
    certificate = _certificate(case, outcome, rng, clock)
    if not _is_exact(certificate) and outcome.records:
        outcome, certificate = _recombined(case, outcome, certificate, rng, clock)
    exact, status, message = _is_exact(certificate), outcome.status, outcome.message
    sure = outcome.confidence
    if status is Status.CONVERGED and outcome.statistics.get(MISSED_DIRECTIONS):
        status = Status.UNDECIDED
    if not exact and outcome.ordered and replayable(case):
        status = Status.UNDECIDED if status is Status.CONVERGED else status
        sure = ()
        message += "; no set of the sequences found gives back the update"
    if case.subject.loss.hides_tokens:
        message += "; masked positions show what the model read, not what was hidden"
    if exact:
        # A batch that gives back the update to the last bit leaves no room for another one.
        sure = tuple(torch.ones(len(ids), dtype=torch.float64) for ids in outcome.records)
    return Reconstruction(
        records=outcome.records,
        confidence=sure,
        ordered=outcome.ordered,
        labels=None if certificate is None else certificate.labels,
        status=Status.EXACT if exact else status,
        message=message + ".",
        certificate=None if certificate is None else certificate.error,
        tensor_errors={} if certificate is None else certificate.per_tensor,
        adapted=case.adapted(),
        statistics=statistics | _of_records(outcome, exact=exact),
    )


def _of_records(outcome: Outcome, *, exact: bool) -> dict[str, float]:
    """Per record the probability that it is complete and in the batch, where something is known of it."""
    if exact:
        return {f"record_{place}": 1.0 for place in range(len(outcome.records))}
    return {name: value for name, value in outcome.statistics.items() if name.startswith("record_")}


def _is_exact(certificate: Certificate | None) -> bool:
    return certificate is not None and certificate.exact


def _with_last_tokens(case: AttackInput, outcome: Outcome) -> Outcome:
    """Records of a language-model loss with their last tokens and copies, where the head's gradient tells them."""
    if case.subject.loss.sees_every_token or not outcome.ordered or any(outcome.starts):
        return outcome
    note = "the last token of a record has a loss in the head's gradient alone, which did not tell it"
    plain = case.undone is None and case.model.parameters is None and case.batch_size is not None
    for prefixes in (outcome.pool, outcome.records) if plain else ():
        records = records_by_next_tokens(case.readable, case.subject, prefixes, batch_size=int(case.batch_size or 0))
        if records is not None:
            note = f"the head's gradient gave last tokens and copies of {len(records)} records"
            return replace(
                outcome,
                records=records,
                starts=(),
                confidence=passed_every_test(records),
                message=f"{outcome.message}; {note}",
            )
    return replace(outcome, message=f"{outcome.message}; {note}")


def _recombined(
    case: AttackInput, outcome: Outcome, certificate: Certificate | None, rng: torch.Generator, clock: Clock
) -> tuple[Outcome, Certificate | None]:
    """Another set of the sequences that passed every test, if one certifies; else what was given, with what least squares say of it."""
    if not replayable(case) or not case.subject.loss.labels_records or not outcome.ordered or any(outcome.starts):
        return outcome, certificate
    pool = (*outcome.records, *outcome.pool)
    proposals = recombinations(
        case.update, case.view["trainer"], pool, batch_size=int(case.batch_size or 0), rng=rng, clock=clock
    )
    for proposal in proposals:
        other = replace(outcome, records=proposal.records, starts=(), confidence=passed_every_test(proposal.records))
        again = _certificate(case, other, rng, clock)
        if _is_exact(again):
            note = f"{len(proposal.records)} records by least squares over the gradients of {len(pool)} sequences"
            return replace(other, message=f"{outcome.message}; {note}"), again
    return outcome, certificate


def _has_dropout(case: AttackInput) -> bool:
    trainer = case.view.get("trainer")
    return trainer is not None and trainer.training.dropout


def replayable(case: AttackInput) -> bool:
    """Whether the right records would give back the update."""
    trainer = case.view.get("trainer")
    if trainer is None or case.batch_size is None or case.seq_len is None or _has_dropout(case):
        return False
    if case.stages and not case.rounded:
        return False
    if steps_by_adamw(trainer) and case.subject.loss.labels_records:
        # Signs of the head's gradient do not tell the labels, and to try them all costs a gradient each.
        return False
    return trainer.training.plain and trainer.subject.extent is None and not case.subject.loss.hides_tokens


def _certificate(case: AttackInput, outcome: Outcome, rng: torch.Generator, clock: Clock) -> Certificate | None:
    if not replayable(case):
        return None
    labels = case.view.get("labels")
    known = labels.tolist() if labels is not None and labels.ndim == 1 else None
    return certify(
        case.update,
        case.view["trainer"],
        outcome.records,
        starts=outcome.starts,
        labels=known,
        batch_size=int(case.batch_size or 0),
        seq_len=int(case.seq_len or 0),
        rng=rng,
        clock=clock,
        release=case.apply_stages,
    )
