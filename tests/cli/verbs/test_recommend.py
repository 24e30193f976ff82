"""``gradleak recommend``: the cheapest setting, or that there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.contract

TEMPLATE = "gaussian(relative_std={knob})"


@pytest.fixture
def sweep(tiny: list[object]) -> list[object]:
    """A frontier of two noise levels, with trainings of three rounds."""
    # The last settings win, so one attack is enough here.
    return [
        *(part if part != "token_support,tag(iterations=3)" else "token_support" for part in tiny),
        *("--frontier", TEMPLATE, "--knobs", "0.01,100", "--utility-rounds", 3, "--utility-seeds", 2),
    ]


def test_recommend_reads_runs_and_ends_with_3_where_there_is_none(
    gradleak: Callable[..., Any], sweep: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    gradleak(*sweep, "--out", out)
    result = gradleak("recommend", out, "--leakage-below", 0.01, "--accuracy-drop-below", 0.01)
    assert result.exit_code == 3
    assert "None of the 3 settings" in result.stdout and "Guessing without any update" in result.stdout
    plain = gradleak("recommend", out, "--leakage-below", 0.01, "--accuracy-drop-below", 0.01, "--json")
    assert plain.exit_code == 3 and json.loads(plain.stdout)["found"] is None


@pytest.mark.parametrize(
    ("leakage", "drop", "message"),
    [
        (0.0, 0.1, "--leakage-below must be"),
        (0.1, 1.5, "--accuracy-drop-below must be"),
        ("nan", 0.1, "must be above 0"),
    ],
)
def test_recommend_refuses_limits_out_of_range(
    gradleak: Callable[..., Any], tmp_path: Path, leakage: object, drop: object, message: str
) -> None:
    result = gradleak("recommend", tmp_path, "--leakage-below", leakage, "--accuracy-drop-below", drop)
    assert result.exit_code == 2 and message in result.stderr


def test_recommend_refuses_a_run_without_a_frontier(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    gradleak(*tiny, "--out", tmp_path / "run")
    result = gradleak("recommend", tmp_path / "run", "--leakage-below", 0.5, "--accuracy-drop-below", 0.5)
    assert result.exit_code == 2 and "holds no frontier" in result.stderr
