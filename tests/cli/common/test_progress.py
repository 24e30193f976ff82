"""Progress: a line per cell in a log, nothing if quiet, and no markup of what is measured."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from gradleak.cli.common.progress import progress_for

pytestmark = pytest.mark.contract

RECORD = SimpleNamespace(
    attack_name=lambda: "tag",
    defense_name=lambda: "clip(max_norm=[1.0])",
    status={"name": "CONVERGED"},
    seconds={"update": 0.25, "attack": 1.0},
)


def lines(*, quiet: bool) -> list[str]:
    file = io.StringIO()
    with progress_for(Console(file=file, force_terminal=False), quiet=quiet) as listener:
        listener.started(5, 3)
        listener.cell_started(SimpleNamespace(label=lambda: "cell"))  # type: ignore[arg-type]
        listener.cell_finished(RECORD)  # type: ignore[arg-type]
        listener.cell_finished(RECORD)  # type: ignore[arg-type]
    return file.getvalue().splitlines()


def test_a_log_has_one_line_per_cell_and_counts_those_that_were_there() -> None:
    said = "tag against clip(max_norm=[1.0]): CONVERGED in 1.2 s"
    assert lines(quiet=False) == ["3 of 5 cells are there already", f"[4/5] {said}", f"[5/5] {said}"]


def test_quiet_is_quiet() -> None:
    assert lines(quiet=True) == []


def test_a_terminal_shows_bars_and_hears_the_attack() -> None:
    file = io.StringIO()
    with progress_for(Console(file=file, force_terminal=True, width=100), quiet=False) as listener:
        listener.started(2, 0)
        report = listener.cell_started(SimpleNamespace(label=lambda: "the cell"))  # type: ignore[arg-type]
        assert report is not None
        report(0.5, "half way")
        listener.cell_finished(RECORD)  # type: ignore[arg-type]
    assert "the cell" in file.getvalue() and "half way" in file.getvalue()
