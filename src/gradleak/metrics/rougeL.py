"""Words recovered in their order, gaps allowed, comparable with published tables. Must not know its variants."""

from __future__ import annotations

from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._rouge import rouge_l, rouge_values


class RougeL(Metric):
    """ROUGE-L F-measure: harmonic mean of precision and recall of the longest common subsequence of words.

    Records without words have no value. There is no closed form for its chance level: see the baseline.
    """

    summary: ClassVar[str] = "ROUGE-L F-measure: longest common subsequence of words with the private text"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})

    def values(self, comparison: Comparison) -> list[float]:
        return rouge_values(comparison, rouge_l, least=1)

    def chance(self, comparison: Comparison) -> float | None:
        return None
