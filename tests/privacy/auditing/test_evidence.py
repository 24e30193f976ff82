"""Evidence in files, against a plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradleak.core.errors import DataError, UsageError
from gradleak.privacy.auditing.evidence import audit
from gradleak.privacy.plan.file import make_plan
from tests.support.planted_releases import CLIP, CORRECT, FAULTS, NOISE, run

pytestmark = pytest.mark.contract
PLAN = make_plan({"noise_multiplier": NOISE})


def saved(path: Path, fault: str | None = None) -> Path:
    arrays = run(CORRECT if fault is None else FAULTS[fault], np.random.default_rng(5))
    save_file(
        {name: value for name, value in arrays.items() if isinstance(value, np.ndarray)},
        path,
        metadata={"clip": str(CLIP)},
    )
    return path


def test_releases(tmp_path: Path) -> None:
    assert not audit(saved(tmp_path / "right.safetensors"), PLAN, 3.0)["refuted"]
    wrong = audit(saved(tmp_path / "wrong.safetensors", "noise x0.9"), PLAN, 3.0)
    assert wrong["refuted"] and wrong["noise_ratio"] == pytest.approx(0.9, abs=0.02)
    with pytest.raises(UsageError, match="one level"):
        audit(tmp_path / "right.safetensors", make_plan({"noise_multipliers": [1.0, 2.0], "steps": [1, 1]}), 3.0)


def test_guesses(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"correct": 100, "guesses": 100, "canaries": 1000}), encoding="utf-8")
    result = audit(file, PLAN, 1.0)
    assert result["refuted"] and 1.0 < result["epsilon_lower"] < result["gaussian_epsilon_lower"]
    assert not audit(file, PLAN, 50.0)["refuted"]


def test_what_is_no_evidence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        audit(tmp_path / "none.json", PLAN, 1.0)
    for name, content, says in (
        ("x.json", "{", "not a JSON"),
        ("y.json", "{}", "whole numbers"),
        ("z.safetensors", "abc", "no safetensors"),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=says):
            audit(tmp_path / name, PLAN, 1.0)
    save_file({"canary": np.ones(40)}, tmp_path / "half.safetensors")
    with pytest.raises(DataError, match="lacks released_with"):
        audit(tmp_path / "half.safetensors", PLAN, 1.0)
