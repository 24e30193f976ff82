"""The page of defenses is what its script makes of the committed measurements, and speaks of every defense that there is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gradleak.harness.request import catalogue

pytestmark = pytest.mark.contract

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(_BENCHMARKS), *sys.path])
    return importlib.import_module("defense_table")


def test_the_page_is_made_of_the_committed_lines(table: ModuleType) -> None:
    made = table.page(table.read())
    assert table.PAGE.read_text(encoding="utf-8") == made, "run python benchmarks/defense_table.py"
    assert "protected" not in made


def test_the_tests_of_the_notes_are_where_the_page_says(table: ModuleType) -> None:
    assert all((_BENCHMARKS.parent / where).is_file() for _, where in table.ELSEWHERE)


def test_every_defense_has_a_setting_and_a_row(table: ModuleType) -> None:
    settings = importlib.import_module("defense_settings").settings()
    page = table.PAGE.read_text(encoding="utf-8")
    for name in catalogue.names("defenses"):
        assert any(name in chain for chain in settings), f"name a setting of {name} in benchmarks/defense_settings.py"
    measured = {cell.defense for cell in table.read()}
    assert measured <= {"none", *settings} and all(f"| `{chain}` |" in page for chain in measured)


def test_a_row_takes_the_best_attack_and_pairs_the_seeds(table: ModuleType) -> None:
    """By hand: means 3 and 5 decibels, so 5; ranks 4 and 2, so 2; accuracies .8 and .6 against .9 and .9, a drop of .2."""
    cell = importlib.import_module("defense_records").Cell

    def lines(defense: str, accuracy: tuple[float, float]) -> list[object]:
        worlds = {"net": "sigmoid", "defense": defense}
        return [
            *(
                cell(measure="pictures", seed=s, values={"L2, naive": 3.0, "cosine, naive": 4.0 + 2 * s}, **worlds)
                for s in (0, 1)
            ),
            *(
                cell(measure="rank", seed=s, values={"likelihood, naive": 4.0, "cosine, naive": 2.0}, **worlds)
                for s in (0, 1)
            ),
            *(
                cell(
                    measure="topics",
                    seed=s,
                    defense=defense,
                    values={"accuracy": accuracy[s], "seconds": 1.0 + (defense != "none")},
                )
                for s in (0, 1)
            ),
        ]

    cells = [*lines("none", (0.9, 0.9)), *lines("sign()", (0.8, 0.6))]
    row = table.row("sign()", cells).split(" | ")
    assert row[1].startswith("5.0 [") and row[5].startswith("2.0 [")
    assert row[7].startswith("0.70 [") and "(+0.20 [" in row[7]
    assert row[9] == "no guarantee" and row[10] == "2.0"
