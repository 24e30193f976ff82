"""The cheapest setting that the evidence supports, or none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradleak.core.errors import UsageError
from gradleak.harness.utility.training import Interval
from gradleak.report.conclusions.frontier import Point, Sweep
from gradleak.report.conclusions.pooling import Pooled
from gradleak.report.conclusions.recommend import Limits, recommend

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


def test_the_cheapest_setting_that_meets_both_limits_is_named() -> None:
    points = (_point("a", 0.9, 0.9), _point("b", 0.2, 0.85), _point("c", 0.2, 0.84), _point("d", 0.15, 0.5))
    answer = recommend([_sweep(*points)], Limits(leakage=0.3, drop=0.1))
    assert answer.found is not None and answer.found.point.knob == "b"
    text = " ".join(answer.sentences())
    assert "gaussian(std=b)" in text and "protect" not in text and "safe" not in text


def test_estimates_alone_do_not_suffice() -> None:
    wide = _point("w", 0.2, 0.85, reach=0.2)
    answer = recommend([_sweep(wide)], Limits(leakage=0.3, drop=0.1))
    assert answer.found is None and [each.point.knob for each in answer.close] == ["w"]
    assert "more --repeats" in " ".join(answer.sentences())
    single = replace(wide, drop=Interval(value=0.0, low=None, high=None, n=1))
    assert recommend([_sweep(single)], Limits(leakage=1.0, drop=1.0)).found is None


@pytest.mark.parametrize("change", [{"adaptive": False}, {"tested": False}])
def test_a_setting_that_no_informed_attack_tested_is_not_named(change: dict[str, bool]) -> None:
    answer = recommend([_sweep(_point("x", 0.12, 0.89, **change))], Limits(leakage=0.3, drop=0.1))
    assert answer.found is None and answer.close == ()
    assert "Not counted" in " ".join(answer.sentences()) and "gaussian(std=x)" in " ".join(answer.sentences())
    counted = recommend([_sweep(_point("y", 0.12, 0.89))], Limits(leakage=0.3, drop=0.1))
    assert "Not counted" not in " ".join(counted.sentences())


def test_runs_of_different_metrics_are_not_mixed() -> None:
    with pytest.raises(UsageError, match="ssim and token_recall"):
        recommend([_sweep(metric="ssim"), _sweep()], Limits(leakage=0.5, drop=0.5))
