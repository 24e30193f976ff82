"""Overlap of word pairs on decoded text, comparable with published tables. Must not know the other variants."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._rouge import rouge_n, rouge_values


class Rouge2(Metric):
    """ROUGE-2 F-measure: harmonic mean of precision and recall of word pairs (multisets, no stemming).

    Records of fewer than 2 words have no value. There is no closed form for its chance level: see the baseline.
    """

    summary: ClassVar[str] = "ROUGE-2 F-measure: overlap of word pairs with the private text"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})

    def values(self, comparison: Comparison) -> list[float]:
        return rouge_values(comparison, partial(rouge_n, order=2), least=2)

    def chance(self, comparison: Comparison) -> float | None:
        return None
