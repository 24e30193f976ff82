"""Overlap of words on decoded text, comparable with published tables. Must not know the other variants."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._rouge import rouge_n, rouge_values


class Rouge1(Metric):
    """ROUGE-1 F-measure: harmonic mean of precision and recall of words (multisets, no stemming).

    Records of fewer than 1 words have no value. There is no closed form for its chance level: see the baseline.
    """

    summary: ClassVar[str] = "ROUGE-1 F-measure: overlap of words with the private text"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})

    def values(self, comparison: Comparison) -> list[float]:
        return rouge_values(comparison, partial(rouge_n, order=1), least=1)

    def chance(self, comparison: Comparison) -> float | None:
        return None
