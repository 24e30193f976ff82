"""The only place where truth meets reconstruction. Must not feed anything back to an attack.

An attack commits to as many records as the batch holds, the first ones in its own order of preference. What it
proposes beyond them is spurious and never scored: to pick the best of many by the truth would be the judge's attack.

An attack that failed (it diverged or does not apply) has no scores: failed is not safe. An attack that ran to its end
and proposes nothing has recovered nothing, and its rates are an honest 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Batch, Modality
from gradleak.core.errors import DataError
from gradleak.core.metric import Comparison, Metric, Score
from gradleak.harness.judging.intervals import summarize
from gradleak.harness.judging.matching import match_images, match_texts
from gradleak.harness.request import catalogue
from gradleak.metrics._sequence import counts, overlap
from gradleak.models import Tokenizer

FAILED = frozenset({Status.DIVERGED, Status.NOT_APPLICABLE})
"""Outcomes that have no scores."""

_HALF_PIXEL_STEP = 0.5 / 255.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What was proposed, and how much of it is false.

    Attributes:
        proposed: content tokens (for images: pictures).
        wrong: of these, those that the matched record does not hold; of a bag, those that no record accounts for.
        wrong_records: ordered texts that are not the beginning of a private record, content token by content token; pictures
            that stand for no record.
        spurious: proposals beyond the number of records, and pictures that are not finite; for a bag, ``wrong``.
    """

    proposed: int
    wrong: int
    wrong_records: int
    spurious: int

    @property
    def precision(self) -> float | None:
        """Share of what was proposed that a record accounts for, or None if nothing was."""
        return 1.0 - self.wrong / self.proposed if self.proposed else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What the judge found.

    Attributes:
        scores: metric name → score, of every metric that applies; empty if the attack failed.
        comparison: truth and matched proposals, as the metrics saw them.
        account: how much was proposed, and how much of it is false.
        exact: True if every record was recovered without error: same content tokens in the same order, for a bag the
            same multiset, for images the same pixels after rounding to 8 bits.
    """

    scores: Mapping[str, Score]
    comparison: Comparison
    account: Account
    exact: bool

    @property
    def spurious(self) -> int:
        return self.account.spurious

    @property
    def precision(self) -> float | None:
        return self.account.precision


def score(
    reconstruction: Reconstruction,
    batch: Batch,
    *,
    tokenizer: Tokenizer | None,
    decoys: Sequence[Tensor] = (),
    seed: int = 0,
    metrics: Mapping[str, Metric] | None = None,
) -> Judgement:
    """Scores a reconstruction against the batch with every metric that applies.

    Args:
        tokenizer: the subject's; None for images.
        decoys: other plausible records, token ids ``[length]`` or pixels, for identification; may be empty.
        seed: of the bootstrap intervals.
        metrics: name → metric; the whole catalogue if None.

    Raises:
        DataError: as ``compare``.
    """
    comparison = compare(reconstruction, batch, tokenizer=tokenizer, decoys=decoys)
    metrics = all_metrics() if metrics is None else metrics
    failed = reconstruction.status in FAILED
    applicable = {} if failed else _applicable(metrics, batch.modality, comparison.ordered)
    scores: dict[str, Score] = {}
    for name, metric in applicable.items():
        values = metric.values(comparison)
        if values:
            scores[name] = summarize(
                values,
                bounded=metric.bounded,
                chance=metric.chance(comparison),
                higher_is_better=metric.higher_is_better,
                seed=seed,
            )
    return Judgement(scores=scores, comparison=comparison, account=_account(comparison), exact=_is_exact(comparison))


def compare(
    reconstruction: Reconstruction, batch: Batch, *, tokenizer: Tokenizer | None, decoys: Sequence[Tensor] = ()
) -> Comparison:
    """Strips what carries no content and matches the proposals that count to records one-to-one.

    Decoys that equal a true record are left out: they could not be told from it. Proposed pixels are clamped to [0, 1];
    proposals of pixels that are not finite stand for no record.

    Raises:
        DataError: if the batch cannot be scored (see ``require_scorable``), or a proposal has not the type or shape
            of a record.
    """
    require_scorable(batch, tokenizer)
    if tokenizer is None:
        return _compare_images(reconstruction, batch, decoys)
    return _compare_texts(reconstruction, batch, tokenizer, decoys)


def require_scorable(batch: Batch, tokenizer: Tokenizer | None) -> None:
    """Raises ``DataError`` if texts come without a tokenizer, images with one, or pixels leave [0, 1]."""
    if batch.modality == "text" and tokenizer is None:
        raise DataError("A batch of token ids cannot be scored without its tokenizer. Pass the subject's tokenizer.")
    if batch.modality == "image":
        if tokenizer is not None:
            raise DataError("A batch of images was given with a tokenizer. Pass tokenizer=None, or token ids.")
        low, high = float(batch.inputs.min()), float(batch.inputs.max())
        if low < 0.0 or high > 1.0:
            raise DataError(
                f"Pixels lie in [{low:.3g}, {high:.3g}]; the metrics need [0, 1]. "
                "Pass images before normalization and let the model normalize."
            )


def all_metrics() -> dict[str, Metric]:
    """Every metric of the catalogue by name."""
    return {name: catalogue.find("metrics", name)() for name in catalogue.names("metrics")}


def _applicable(metrics: Mapping[str, Metric], modality: Modality, ordered: bool) -> dict[str, Metric]:
    return {
        name: metric
        for name, metric in metrics.items()
        if modality in metric.modalities and (ordered or metric.bags != "omitted")
    }


def _compare_texts(
    reconstruction: Reconstruction, batch: Batch, tokenizer: Tokenizer, decoys: Sequence[Tensor]
) -> Comparison:
    special = tokenizer.special_ids
    truths = tuple(record.detach().cpu() for record in batch.records())
    proposals = tuple(_require_ids(record) for record in reconstruction.records)
    truth = tuple(_content(record, special) for record in truths)
    content = tuple(_content(record, special) for record in proposals)
    if reconstruction.ordered:
        committed = tuple(zip(content, proposals, strict=True))[: batch.size]
        matched = match_texts(tuple(zip(truth, truths, strict=True)), committed)
    else:
        matched = _match_bag(content, len(truth))
    return Comparison(
        truth=truth,
        guess=_pick(content, matched),
        aligned=tuple(zip(truths, _pick(proposals, matched), strict=True)),
        extras=_rest(content, matched),
        ordered=reconstruction.ordered,
        decoys=_distinct(tuple(_content(decoy.cpu(), special) for decoy in decoys), truth),
        special_ids=special,
        vocab_size=tokenizer.vocab_size,
        decode=tokenizer.decode,
        ranking=tuple(_content(_require_ids(record), special) for record in reconstruction.ranking),
        confidence=_pick(reconstruction.confidence, matched) if reconstruction.confidence else (),
    )


def _compare_images(reconstruction: Reconstruction, batch: Batch, decoys: Sequence[Tensor]) -> Comparison:
    truth = tuple(record.detach().cpu().float() for record in batch.records())
    proposals = tuple(_require_pixels(record, truth[0]) for record in reconstruction.records)
    finite = [index for index, record in enumerate(proposals) if bool(torch.isfinite(record).all())][: batch.size]
    among = match_images(truth, [proposals[index] for index in finite])
    matched = [None if index is None else finite[index] for index in among]
    guess = _pick(proposals, matched)
    return Comparison(
        truth=truth,
        guess=guess,
        aligned=tuple(zip(truth, guess, strict=True)),
        extras=_rest(proposals, matched),
        ordered=True,
        decoys=_distinct(tuple(_require_pixels(decoy, truth[0]) for decoy in decoys), truth),
        special_ids=frozenset(),
        vocab_size=0,
        decode=_no_text,
        ranking=tuple(_require_pixels(record, truth[0]) for record in reconstruction.ranking),
    )


def _no_text(ids: Tensor) -> str:
    raise DataError("Images have no text to decode. Compute text metrics on token ids only.")


def _require_ids(record: Tensor) -> Tensor:
    if record.ndim != 1 or record.is_floating_point():
        raise DataError(
            f"A proposed text must be integer token ids [length], got {record.dtype} {tuple(record.shape)}. "
            "Mend the attack's records."
        )
    return record.detach().cpu().long()


def _require_pixels(record: Tensor, like: Tensor) -> Tensor:
    if record.shape != like.shape or not record.is_floating_point():
        raise DataError(
            f"A picture must be floating and of shape {tuple(like.shape)}, got {record.dtype} {tuple(record.shape)}. "
            "Mend the attack's records or the decoys."
        )
    return record.detach().cpu().float().clamp(0.0, 1.0)


def _content(ids: Tensor, special: frozenset[int]) -> Tensor:
    return ids[~torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype))]


def _match_bag(bags: Sequence[Tensor], records: int) -> list[int | None]:
    if len(bags) > 1:
        raise DataError(f"An unordered reconstruction holds one bag of tokens, got {len(bags)}. Join them.")
    return [0 if bags and index == 0 else None for index in range(records)]


def _pick(proposals: Sequence[Tensor], matched: Sequence[int | None]) -> tuple[Tensor | None, ...]:
    return tuple(None if index is None else proposals[index] for index in matched)


def _rest(proposals: Sequence[Tensor], matched: Sequence[int | None]) -> tuple[Tensor, ...]:
    used = set(matched)
    return tuple(proposal for index, proposal in enumerate(proposals) if index not in used)


def _distinct(decoys: Sequence[Tensor], truths: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(decoy for decoy in decoys if not any(torch.equal(decoy, truth) for truth in truths))


def _account(comparison: Comparison) -> Account:
    proposed = [guess for guess in comparison.guess if guess is not None]
    every, spare = [*proposed, *comparison.extras], len(comparison.extras)
    if comparison.truth[0].is_floating_point():
        return Account(proposed=len(every), wrong=spare, wrong_records=spare, spurious=spare)
    total = sum(len(record) for record in every)
    if not comparison.ordered:
        hits = overlap(counts(torch.cat(comparison.truth)), counts(comparison.guess[0]))
        return Account(proposed=total, wrong=total - hits, wrong_records=0, spurious=total - hits)
    pairs = zip(comparison.truth, comparison.guess, strict=True)
    hits = sum(overlap(counts(truth), counts(guess)) for truth, guess in pairs)
    begun = [any(torch.equal(truth[: len(guess)], guess) for truth in comparison.truth) for guess in every]
    return Account(proposed=total, wrong=total - hits, wrong_records=begun.count(False), spurious=spare)


def _is_exact(comparison: Comparison) -> bool:
    if not comparison.ordered:
        return counts(comparison.guess[0]) == counts(torch.cat(comparison.truth))
    return all(_same(truth, guess) for truth, guess in zip(comparison.truth, comparison.guess, strict=True))


def _same(truth: Tensor, guess: Tensor | None) -> bool:
    if guess is None:
        return False
    if truth.is_floating_point():
        return float((truth - guess).abs().max()) < _HALF_PIXEL_STEP
    return torch.equal(truth, guess)
