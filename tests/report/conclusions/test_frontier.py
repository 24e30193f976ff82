"""Points of a frontier: which are on the front and what must be said of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradleak.harness.utility.training import Interval
from gradleak.report.conclusions.frontier import Point, Sweep, mark_front, remarks
from gradleak.report.conclusions.pooling import Pooled

pytestmark = pytest.mark.contract

TEMPLATE = "gaussian(relative_std={knob})"


def _point(
    knob: str, leakage: float, accuracy: float, *, reach: float = 0.05, adaptive: bool = True, tested: bool = True
) -> Point:
    return Point(
        knob=knob,
        defense=f"gaussian(std={knob})",
        attack="span",
        leakage=Pooled(
            value=leakage,
            low=leakage - reach,
            high=leakage + reach,
            chance=None,
            n=20,
            higher_is_better=True,
            has_interval=True,
        ),
        guessing=0.1,
        tested=tested,
        adaptive=adaptive,
        accuracy=Interval(value=accuracy, low=accuracy - 0.01, high=accuracy + 0.01, n=5),
        drop=Interval(value=0.9 - accuracy, low=0.89 - accuracy, high=0.91 - accuracy, n=5),
        epsilon=None,
        guarantee="no guarantee",
        seconds=1.0,
        kept_bytes=0,
        reason="",
    )


def _sweep(*points: Point, metric: str = "token_recall") -> Sweep:
    return Sweep(run="r", template=TEMPLATE, metric=metric, task="t", chance=0.25, points=points)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [_point("a", 0.9, 0.9), _point("b", 0.5, 0.8), _point("c", 0.6, 0.7), _point("d", 0.05, 0.6)]
    # Below guessing (0.1) nothing is gained: "e" leaks what "d" does and costs more.
    points += [_point("e", 0.0, 0.55), _point("f", 0.0, 0.95, tested=False)]
    assert [point.knob for point in mark_front(points) if point.front] == ["a", "b", "d"]


def test_a_setting_that_was_not_tested_says_so() -> None:
    swept = _sweep(_point("u", 0.2, 0.8, tested=False), _point("n", 0.2, 0.8, adaptive=False), _point("a", 0.2, 0.8))
    assert [text.split(":")[0] for text in remarks(swept)] == ["u", "n"]
    missing = replace(_point("m", 0.2, 0.8), accuracy=None, drop=None, reason="No place for this stage.")
    assert remarks(_sweep(missing)) == ("m: No place for this stage.",)
