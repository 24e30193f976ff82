"""Why: whatever searched, what came of it is told in one way: records, a status, words, numbers and, where it can be had, the
certificate. Must not know how tokens or sequences are searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.span.candidates.types import Candidates
from gradleak.span.decoder.prefix_search import SearchResult
from gradleak.span.encoder.sentence_search import SentenceResult
from gradleak.span.outcome.certificate import Certificate, certify
from gradleak.span.reading.evidence import AttackInput, steps_by_adamw
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, ObservedLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    records: tuple[Tensor, ...]
    status: Status
    message: str
    statistics: Mapping[str, float]
    ordered: bool = True
    starts: tuple[int, ...] = ()
    confidence: tuple[Tensor, ...] = ()


def outcome_of_growth(grown: SearchResult, batch_size: int | None) -> Outcome:
    records = grown.sequences
    notes = [f"{len(records)} sequences grown" + (f" for {batch_size} records" if batch_size else "")]
    if any(grown.starts):
        notes.append(f"{sum(start > 0 for start in grown.starts)} of them begin behind padding or another document")
    if grown.crowded:
        notes.append("prefixes had to be dropped for their number")
    if batch_size is not None and len(records) < batch_size:
        notes.append("a repeated record or one that is a prefix of another is invisible")
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
            "missed_directions": float(grown.missed),
        },
        confidence=passed_every_test(records),
        starts=grown.starts,
    )


def passed_every_test(records: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Confidence of tokens of which the tests let any wrong one pass at a known rate."""
    return tuple(torch.full((len(ids),), 1.0 - FALSE_ALARM_RATE, dtype=torch.float64) for ids in records)


def outcome_of_assembly(assembled: SentenceResult, batch_size: int | None) -> Outcome:
    records = assembled.sentences if batch_size is None else assembled.sentences[:batch_size]
    notes = [f"{len(records)} sentences assembled" + (f" for {batch_size} records" if batch_size else "")]
    if batch_size is not None and len(records) < batch_size:
        notes.append("a repeated record is invisible; the search is not exhaustive")
    if assembled.missed:
        notes.append(f"at least {assembled.missed} directions of the update belong to tokens that were not found")
    if not assembled.ordered:
        notes.append("the first attention reads no positions: the tokens of each record, in any order")
    statistics = {
        "tested": float(assembled.tested),
        "accepted": float(len(assembled.sentences)),
        "missed_directions": float(assembled.missed),
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
        "null_cut": candidates.null_cut,
    }
    for number, reader in enumerate(readers, start=1):
        found[f"rank_context_{number}"] = float(reader.space.inputs)
    return found


def conclude(
    case: AttackInput, outcome: Outcome, statistics: dict[str, float], rng: torch.Generator, clock: Clock
) -> Reconstruction:
    """Adds the certificate where it can be had, and says what no effort could have shown."""
    certificate = _certificate(case, outcome, rng, clock)
    exact = certificate is not None and certificate.exact
    status = outcome.status
    if status is Status.CONVERGED and outcome.statistics.get("missed_directions"):
        status = Status.UNDECIDED
    message = outcome.message
    if not case.subject.loss.sees_every_token:
        message += "; the last token of a record has no loss and no reader, so it is invisible to this attack"
    if case.subject.loss.hides_tokens:
        message += "; masked positions show what the model read, not what was hidden"
    # A batch that gives back the update to the last bit leaves no room for another one.
    sure = tuple(torch.ones(len(ids), dtype=torch.float64) for ids in outcome.records) if exact else outcome.confidence
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
        statistics=statistics,
    )


def _has_dropout(case: AttackInput) -> bool:
    trainer = case.view.get("trainer")
    return trainer is not None and trainer.training.dropout


def _certificate(case: AttackInput, outcome: Outcome, rng: torch.Generator, clock: Clock) -> Certificate | None:
    trainer = case.view.get("trainer")
    if trainer is None or case.batch_size is None or case.seq_len is None or case.stages or _has_dropout(case):
        return None
    if steps_by_adamw(trainer) and case.subject.loss.labels_records:
        # Signs of the head's gradient do not tell the labels, and to try them all costs a gradient each.
        return None
    labels = case.view.get("labels")
    known = labels.tolist() if labels is not None and labels.ndim == 1 else None
    return certify(
        case.update,
        trainer,
        outcome.records,
        starts=outcome.starts or (0,) * len(outcome.records),
        labels=known,
        batch_size=case.batch_size,
        seq_len=case.seq_len,
        rng=rng,
        clock=clock,
    )
