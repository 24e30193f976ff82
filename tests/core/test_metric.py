"""Scores and comparisons as data: what a score writes is what it holds."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from gradleak.core.metric import Metric, Score

pytestmark = pytest.mark.contract


def test_a_score_writes_all_that_it_holds() -> None:
    score = Score(value=0.5, low=0.25, high=0.75, chance=None, n=4, higher_is_better=False)
    plain = score.to_plain()
    assert set(plain) == {field.name for field in fields(Score)}
    assert Score(**json.loads(json.dumps(plain))) == score


def test_a_metric_without_values_or_chance_is_none() -> None:
    class Half(Metric):
        def values(self, comparison: object) -> list[float]:
            return [0.5]

    with pytest.raises(TypeError, match="chance"):
        Half()  # type: ignore[abstract]


def test_defaults_are_those_of_a_rate_on_ordered_text() -> None:
    assert (Metric.higher_is_better, Metric.bags, Metric.bounded, Metric.best) == (True, "omitted", True, 1.0)
