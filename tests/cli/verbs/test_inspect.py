"""``gradleak inspect`` on one screen and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from tests.support.captured import SETTINGS, gradient_of, subject_of

pytestmark = pytest.mark.contract


@pytest.mark.contract
def test_a_file_is_described_on_one_screen_and_as_json(gradleak: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "update.safetensors"
    save_file({f"module.{name}": t.contiguous() for name, t in gradient_of(subject_of()).items()}, file)
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    shown = gradleak("inspect", file, "--model", "random:bert", *settings)
    assert shown.exit_code == 0
    assert "a gradient" in shown.stdout
    assert "fit the model behind 'module'" in shown.stdout
    assert len(shown.stdout.splitlines()) < 24
    plain = json.loads(gradleak("inspect", file, "--model", "random:bert", *settings, "--json").stdout)
    assert (plain["kind"], plain["format"], plain["names"]["prefix"]) == ("gradient", "float32", "module")
    assert {"scale", "noise"} <= set(plain)


@pytest.mark.errors
def test_a_missing_file_is_exit_code_2(gradleak: Callable[..., Any], tmp_path: Path) -> None:
    assert gradleak("inspect", tmp_path / "none.safetensors").exit_code == 2
