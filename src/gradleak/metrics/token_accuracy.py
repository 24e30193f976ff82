"""A token in its own place tells more than a token somewhere. Must not realign what the attack misplaced."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Int64
from torch import Tensor

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._sequence import content_vocabulary


class TokenAccuracy(Metric):
    """Share of the content positions of a record at which the proposal holds the same token.

    Positions are those of the model's input, special tokens included in the count of places but never scored.
    Positions that a shorter proposal lacks are misses; positions beyond the truth are neither hits nor misses
    (``exact_match`` and the judge's precision count them).
    """

    summary: ClassVar[str] = "share of the private tokens recovered in their exact positions"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})

    def values(self, comparison: Comparison) -> list[float]:
        special = comparison.special_ids
        return [
            _accuracy(truth, guess, special)
            for truth, guess in comparison.aligned
            if any(token not in special for token in truth.tolist())
        ]

    def chance(self, comparison: Comparison) -> float | None:
        return 1.0 / content_vocabulary(comparison)


def _accuracy(truth: Int64[Tensor, " length"], guess: Int64[Tensor, " other"] | None, special: frozenset[int]) -> float:
    proposed = [] if guess is None else guess.tolist()
    places = [(place, token) for place, token in enumerate(truth.tolist()) if token not in special]
    hits = sum(place < len(proposed) and proposed[place] == token for place, token in places)
    return hits / len(places)
