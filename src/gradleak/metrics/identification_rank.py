"""A reconstruction that looks poor may still point at its source. Must not use anything but the proposal.

Given the true record and decoys from the same source, an adversary who holds the proposal ranks them by similarity to
it. A low rank of the truth is a leak even where no token or pixel is right.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._sequence import counts, harmonic, lcs_length, overlap


class IdentificationRank(Metric):
    """Rank of the true record among itself and N decoys by similarity to the proposal; 1 is best, ties count half.

    Similarity: for text the F-measure of shared tokens (multisets) plus that of the longest common subsequence; for a
    bag, which spans the batch, the share of the candidate's tokens that the bag holds plus the F-measure; for images
    the negative mean squared error. A missing proposal is equally similar to all. An attack that ranked the candidates
    itself is taken at its word: the rank is one more than the number of decoys that it placed before the true record.

    Chance: (N + 2) / 2, the mean rank of a candidate drawn blindly from N + 1.
    """

    summary: ClassVar[str] = "rank of the private record among decoys by likeness to the reconstruction; 1 is best"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text", "image"})
    higher_is_better: ClassVar[bool] = False
    bags: ClassVar[Literal["scored", "zero", "omitted"]] = "scored"
    bounded: ClassVar[bool] = False

    def values(self, comparison: Comparison) -> list[float]:
        if not comparison.decoys:
            return []
        if comparison.ranking:
            return [_place(truth, comparison) for truth in comparison.truth if truth.numel()]
        guesses = comparison.guess if comparison.ordered else comparison.guess[:1] * len(comparison.truth)
        pairs = zip(comparison.truth, guesses, strict=True)
        return [_rank(truth, guess, comparison) for truth, guess in pairs if truth.numel()]

    def chance(self, comparison: Comparison) -> float | None:
        return (len(comparison.decoys) + 2) / 2 if comparison.decoys else None


def _place(truth: Tensor, comparison: Comparison) -> float:
    """The rank that the attack gave a true record; behind all decoys if it left the record out."""
    places = [place for place, record in enumerate(comparison.ranking) if torch.equal(record, truth)]
    before = comparison.ranking[: places[0]] if places else comparison.ranking
    decoys = sum(any(torch.equal(record, decoy) for decoy in comparison.decoys) for record in before)
    return 1.0 + (decoys if places else len(comparison.decoys))


def _rank(truth: Tensor, guess: Tensor | None, comparison: Comparison) -> float:
    likeness = [_likeness(guess, candidate, comparison.ordered) for candidate in (truth, *comparison.decoys)]
    better = sum(value > likeness[0] for value in likeness[1:])
    equal = sum(value == likeness[0] for value in likeness[1:])
    return 1.0 + better + 0.5 * equal


def _likeness(guess: Tensor | None, candidate: Tensor, ordered: bool) -> float:
    if guess is None:
        return 0.0
    if candidate.is_floating_point():
        return -float((guess.double() - candidate.double()).square().mean())
    held, asked = counts(guess), counts(candidate)
    shared = harmonic(overlap(held, asked), held.total(), asked.total())
    return shared + (_sequence_likeness(guess, candidate) if ordered else _containment(held, asked))


def _sequence_likeness(guess: Tensor, candidate: Tensor) -> float:
    return harmonic(lcs_length(guess.tolist(), candidate.tolist()), len(guess), len(candidate))


def _containment(held: Counter[int], asked: Counter[int]) -> float:
    return overlap(held, asked) / asked.total() if asked else 0.0
