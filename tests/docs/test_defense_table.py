"""The page of defenses is what its script makes of the committed measurements, and speaks of every defense that there is."""

from __future__ import annotations

import pytest

from benchmarks.defenses import table
from benchmarks.defenses.records import Cell
from benchmarks.defenses.settings import settings
from gradleak.harness.request import catalogue

pytestmark = pytest.mark.contract


def test_the_page_is_made_of_the_committed_lines() -> None:
    made = table.page(table.read())
    assert table.PAGE.read_text(encoding="utf-8") == made, "run python -m benchmarks.defenses.table"
    assert "protected" not in made


def test_the_tests_of_the_notes_are_where_the_page_says() -> None:
    assert all((table.PAGE.parents[1] / where).is_file() for _, where in table.ELSEWHERE)


def test_every_defense_has_a_setting_and_a_row() -> None:
    chains = settings()
    page = table.PAGE.read_text(encoding="utf-8")
    for name in catalogue.names("defenses"):
        assert any(name in chain for chain in chains), f"name a setting of {name} in benchmarks/defenses/settings.py"
    measured = {cell.defense for cell in table.read()}
    assert measured <= {"none", *chains} and all(f"| `{chain}` |" in page for chain in measured)


def test_a_row_takes_the_best_attack_and_pairs_the_seeds() -> None:
    """By hand: means 3 and 5 decibels, so 5; ranks 4 and 2, so 2; accuracies .8 and .6 against .9 and .9, a drop of .2."""

    def lines(defense: str, accuracy: tuple[float, float]) -> list[object]:
        worlds = {"net": "sigmoid", "defense": defense}
        return [
            *(
                Cell(measure="pictures", seed=s, values={"L2, naive": 3.0, "cosine, naive": 4.0 + 2 * s}, **worlds)
                for s in (0, 1)
            ),
            *(
                Cell(measure="rank", seed=s, values={"likelihood, naive": 4.0, "cosine, naive": 2.0}, **worlds)
                for s in (0, 1)
            ),
            *(
                Cell(
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
