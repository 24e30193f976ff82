"""``compare`` and ``check`` read run folders: what they refuse, what they print, how they exit."""

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


def test_a_run_differs_from_itself_by_nothing(gradleak: Callable[..., Any], run: Callable[..., Path]) -> None:
    folder = run("a")
    found = json.loads(gradleak("compare", folder, folder, "--json").stdout)
    assert (found["changed"], found["unpaired"]) == ([], [])
    assert {one["gain"] for one in found["differences"]} == {0.0}
    assert {one["pairs"] for one in found["differences"]} == {2}


def test_compare_pairs_by_name_and_names_what_changed(gradleak: Callable[..., Any], run: Callable[..., Path]) -> None:
    first, second = run("a"), run("b", "--threat", "naive_server", "--attacks", "token_support,tag(iterations=4),dlg")
    result = gradleak("compare", first, second)
    assert result.exit_code == 0
    assert "threat: honest_server → naive_server" in result.stdout
    assert "in one run only: none dlg" in result.stdout
    found = json.loads(gradleak("compare", first, second, "--json").stdout)
    assert {one["attack"] for one in found["differences"]} == {"token_support", "tag"}
    records = {
        name: [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        for name, folder in (("first", first), ("second", second))
    }
    one = next(
        d for d in found["differences"] if (d["defense"], d["attack"], d["metric"]) == ("none", "tag", "token_recall")
    )
    for name, lines in records.items():
        values = [
            r["scores"]["token_recall"]["value"] for r in lines if r["attack"]["type"] == "tag" and not r["defenses"]
        ]
        assert one[name] == pytest.approx(sum(values) / len(values))


def test_other_batches_are_refused(gradleak: Callable[..., Any], run: Callable[..., Path]) -> None:
    result = gradleak("compare", run("a"), run("b", "--seed", 1))
    assert result.exit_code == 2
    assert "--seed" in result.stderr
