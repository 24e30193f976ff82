"""The share of records that were read out whole. Must not forgive a single token."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._sequence import content_vocabulary, mean


class ExactMatch(Metric):
    """1 if the content tokens of truth and proposal are the same in number, kind and order, else 0.

    A bag of tokens has no order and matches no record: it scores 0, so that an attack which sometimes finds the order is
    not averaged over those batches alone.

    Chance: V^-n for a record of n content tokens guessed uniformly from V, its length known.
    """

    summary: ClassVar[str] = "share of the private records recovered word for word"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    bags: ClassVar[Literal["scored", "zero", "omitted"]] = "zero"

    def values(self, comparison: Comparison) -> list[float]:
        if not comparison.ordered:
            return [0.0 for truth in comparison.truth if len(truth)]
        pairs = zip(comparison.truth, comparison.guess, strict=True)
        return [float(guess is not None and torch.equal(truth, guess)) for truth, guess in pairs if len(truth)]

    def chance(self, comparison: Comparison) -> float | None:
        vocabulary = float(content_vocabulary(comparison))
        return mean([vocabulary ** -len(truth) for truth in comparison.truth if len(truth)])
