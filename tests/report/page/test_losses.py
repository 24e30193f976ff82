"""Learning curves: one scale for all panels, lines inside it, and nothing for settings that were not trained."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest

from gradleak.report.page.losses import panels

pytestmark = pytest.mark.contract


def trained(defense: str, *losses: float) -> SimpleNamespace:
    return SimpleNamespace(defense=defense, losses=list(losses))


def test_a_panel_for_every_setting_that_was_trained() -> None:
    runs = [trained("none", 1.0, 0.5), trained("none", 1.0, 0.7), trained("clip", 2.0, 1.5)]
    shown = panels([("no defense", "none"), ("knob 1", "clip"), ("knob 2", "noise")], runs)  # type: ignore[arg-type]
    assert [panel.name for panel in shown] == ["no defense", "knob 1"]
    assert {panel.ticks for panel in shown} == {shown[0].ticks}, "one scale"
    assert float(shown[0].ticks[0][0]) >= 2.0 and shown[0].ticks[-1] == ("0", "100%")
    assert "2 seeds end at 0.60 on average" in str(shown[0].drawing) and shown[0].span == "2 rounds"


def test_a_loss_that_is_no_number_is_left_out_and_one_beyond_the_scale_stays_inside() -> None:
    shown = panels([("x", "x")], [trained("x", 1.0, math.nan, 0.5), trained("x", 1.0, math.inf, 0.5)])  # type: ignore[list-item]
    assert "nan" not in str(shown[0].drawing).lower() and "inf" not in str(shown[0].drawing).lower()
    numbers = [float(n) for n in re.findall(r"[ML ](-?\d+\.?\d*)", str(shown[0].drawing))]
    assert numbers and min(numbers) >= -1e-9


def test_without_any_training_there_is_no_panel() -> None:
    assert panels([("x", "x")], []) == () and panels([("x", "x")], [trained("x")]) == ()  # type: ignore[list-item]
