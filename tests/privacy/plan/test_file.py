"""Values and files of a plan that cannot be read are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradleak.core.errors import DataError, UnknownNameError, UsageError
from gradleak.privacy.plan.file import make_plan, read_plan
from gradleak.privacy.plan.plan import Phase
from gradleak.privacy.training_cost.clip_choice import read_norms

pytestmark = pytest.mark.errors

BASE: dict[str, Any] = {"noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"delta": 1.0}, "delta=1.0 is out of range"),
        ({"delta": 0.0}, "between 0 and 1"),
        ({"noise_multiplier": -0.1}, "noise_multiplier=-0.1"),
        ({"noise_multiplier": float("nan")}, "finite"),
        ({"noise_multiplier": "1"}, "must be a number"),
        ({"noise_multiplier": True}, "must be a number"),
        ({"sampling_rate": 1.5}, "at most 1"),
        ({"sampling_rate": 0.0}, "above 0"),
        ({"sampling": "none", "sampling_rate": 0.5}, "poisson, fixed or shuffle"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "whole number"),
        ({"steps": [5, 5]}, "as many entries"),
        ({"noise_multipliers": [1.0]}, "Keep one of them"),
        ({"participations": 5}, "more than the 1 steps"),
        ({"tensors": 4}, "for clip tensor only"),
        ({"clients": 0}, "clients=0"),
        ({"relation": 3}, "word in quotes"),
        ({"unnoised": "wte"}, "list in brackets"),
        ({"claimed": 3}, "must be a table"),
        ({"claimed": {"epsilon": -1.0}}, "claimed epsilon"),
        ({"claimed": {"steps": -1}}, "claimed steps"),
        ({"clip": "tensor"}, "clip tensor needs tensors"),
        ({"sampling": "with_replacement", "sampling_rate": 0.1}, "Give records"),
        ({"last_batch": "kept"}, "for shuffled epochs"),
        ({"count_noise": 5.0, "mechanism": "laplace"}, "beside Gaussian noise"),
    ],
)
def test_values(table: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan({**BASE, **table})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("table", "near"),
    [
        ({"relation": "replace-on"}, "replace_one"),
        ({"view": "final"}, "final_model"),
        ({"clip": "exmaple"}, "example"),
        ({"samplig": "poisson"}, "sampling"),
        ({"claimed": {"epsilonn": 1.0}}, "epsilon"),
        ({"claimed": {"accountant": "clasical"}}, "classical"),
    ],
)
def test_unknown_names_show_the_nearest(table: dict[str, Any], near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        make_plan({**BASE, **table})


def test_a_schedule_is_read() -> None:
    plan = make_plan({"noise_multipliers": [15, 10.0], "steps": [50, 60]})
    assert plan.phases == (Phase(noise_multiplier=15.0, steps=50), Phase(noise_multiplier=10.0, steps=60))
    assert make_plan({"noise_multiplier": 1, "sampling_rate": 0.1}).sampling == "poisson"
    assert make_plan({"noise_multiplier": 1, "relation": "replace-one"}).relation == "replace_one"


def test_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cannot read the plan"):
        read_plan(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = ", encoding="utf-8")
    with pytest.raises(DataError, match="is not a TOML file"):
        read_plan(broken)
    with pytest.raises(DataError, match="Cannot read the gradient norms"):
        read_norms(tmp_path / "missing.txt")
    for text in ("1.0\nabc\n", "", "0\n0\n", "-1\n2\n"):
        broken.write_text(text, encoding="utf-8")
        with pytest.raises(DataError):
            read_norms(broken)
