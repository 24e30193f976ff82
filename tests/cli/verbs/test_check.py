"""``gradleak check`` exits with what the run shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.contract

DEFENSE = "gaussian(std=1e-9)"


@pytest.fixture
def run(gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path) -> Callable[..., Path]:
    """An audit of two batches under ``DEFENSE``, with more options."""

    def call(name: str, *options: object) -> Path:
        arguments = [*tiny, "--repeats", 2, "--defenses", DEFENSE, "--out", tmp_path / name, *options]
        assert gradleak(*arguments).exit_code in {0, 3}
        return tmp_path / name

    return call


def test_the_gate_exits_with_what_the_run_shows(
    gradleak: Callable[..., Any], run: Callable[..., Path], tmp_path: Path
) -> None:
    folder, policy = run("a"), tmp_path / "policy.toml"

    def gate(text: str, *options: object) -> Any:
        policy.write_text(f"[[rule]]\n{text}\n")
        return gradleak("check", folder, "--policy", policy, *options)

    broken = gate('metric = "token_recall"\nat_most = 0.1\nattack = "token_support"', "--junit", tmp_path / "junit.xml")
    assert broken.exit_code == 1
    assert broken.stdout.startswith("fail: token_recall by token_support at most 0.1, gaussian(std=")
    assert "<failure" in (tmp_path / "junit.xml").read_text()
    undecided = gate(
        'metric = "token_recall"\nat_most = 0.9\nattack = "span"', "--sarif", tmp_path / "log.sarif", "--json"
    )
    assert undecided.exit_code == 3
    assert json.loads(undecided.stdout)["outcome"] == "inconclusive"
    assert json.loads((tmp_path / "log.sarif").read_text())["runs"][0]["results"][0]["kind"] == "open"
    assert gate('metric = "token_recall"\nat_most = 1.0').exit_code == 0
    assert gate('metric = "recall"\nat_most = 1.0').exit_code == 2
    assert gradleak("check", folder, "--policy", tmp_path / "nothing.toml").exit_code == 2
    assert gradleak("check", tmp_path, "--policy", policy).exit_code == 2
