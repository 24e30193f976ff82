"""The map of the notes' numbers names tests that exist and figures that stand in the result file beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "theory" / "acceptance.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|") and "---" not in line and not line.endswith("where |")
]
QUOTED = re.compile(r"`([^`]+)`")


@pytest.mark.parametrize("row", ROWS)
def test_every_row_names_what_exists(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    ours, where = QUOTED.findall(cells[-2]), QUOTED.findall(cells[-1])
    assert where, "no place is named"
    printed = ""
    for place in where:
        path, _, function = place.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        if function:
            assert re.search(rf"^def {function}\(", text, re.MULTILINE), place
        else:
            printed += text
    for figure in ours:
        assert figure in printed, f"{figure} stands in none of {where}"


def test_all_of_the_notes_tests_are_there() -> None:
    named = {row.split("|")[1].strip() for row in ROWS}
    assert {str(number) for number in range(1, 25)} <= named
    assert {f"C{k}" for k in range(1, 5)} | {f"F{k}" for k in range(1, 7)} <= named
