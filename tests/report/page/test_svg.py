"""Drawings: positions on the scale, escaped labels, thinned lines."""

from __future__ import annotations

import pytest

from gradleak.report.page import svg

pytestmark = pytest.mark.contract


def test_positions_stay_on_the_scale() -> None:
    assert svg.at(-5) == svg.at(0.0) == "3.00%"
    assert svg.at(1.0) == svg.at(7.0) == "97.00%"


def test_labels_of_drawings_are_escaped() -> None:
    drawing = svg.strip(value=0.5, low=0.1, high=0.9, prior=None, strong=True, failed=False, label='"><script>')
    assert "<script>" not in drawing


def test_thin_keeps_both_ends_and_order() -> None:
    line = [(float(i), float(i)) for i in range(5000)]
    short = svg.thin(line, 60)
    assert short[0] == line[0] and short[-1] == line[-1]
    assert list(short) == sorted(set(short))
    assert len(short) <= 120


@pytest.mark.parametrize(("value", "top"), [(31.5, 40.0), (0.013, 0.02), (1.0, 1.0), (0.0, 1.0), (95.0, 100.0)])
def test_nice_top(value: float, top: float) -> None:
    assert svg.nice_top(value) == pytest.approx(top)
