"""Two runs are compared batch by batch, and only if their batches are the same."""

from __future__ import annotations

import pytest
from scipy import stats

from gradleak.report.conclusions.compare import student

pytestmark = pytest.mark.contract


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    first, second = [0.2, 0.5, 0.1, 0.9], [0.3, 0.9, 0.1, 1.0]
    expected = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert student([b - a for a, b in zip(first, second, strict=True)]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("gains", [[0.3], [0.2, 0.2, 0.2]], ids=["one batch", "equal gains"])
def test_no_interval_without_a_spread(gains: list[float]) -> None:
    assert student(gains) == (None, None)
