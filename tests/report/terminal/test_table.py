"""The terminal table says the numbers of the verdict."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from gradleak.core.record import Record
from gradleak.report.terminal.table import table

pytestmark = pytest.mark.contract

Maker = Callable[..., Record]


def plain(
    value: float, n: int = 1, *, low: float | None = None, high: float | None = None, up: bool = True
) -> dict[str, Any]:
    return {
        "value": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
        "chance": 0.0,
        "n": n,
        "higher_is_better": up,
    }


def text_scores(exact: float, recall: float, n: int = 20) -> dict[str, Any]:
    return {"exact_match": plain(exact, n), "token_recall": plain(recall, n)}


def failing(make: Maker, name: str, flags: list[str], scores: dict[str, Any]) -> Record:
    return make(status=dict(make().status) | {"name": name}, flags=flags, scores=scores)


def test_terminal_table_says_the_numbers_of_the_verdict(make_record: Maker) -> None:
    records = [make_record(repeat=i, scores=text_scores(1.0, 1.0, 1)) for i in range(5)]
    records.append(failing(make_record, "NOT_APPLICABLE", [], {}))
    console = Console(file=io.StringIO(), width=200)
    console.print(table(records))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("exact_match", "100% [48–100%]", "no guarantee", "NO_DP_CLAIM", "tag"):
        assert part in text
