"""A long run says where it is and how long it will take, on standard error. Must not know what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gradleak.core.record import Record
from gradleak.harness.request.plan import Cell
from gradleak.harness.running.runner import Listener, Silent


@contextmanager
def progress_for(console: Console, *, quiet: bool) -> Iterator[Listener]:
    """A live bar on a terminal, a line per cell elsewhere, nothing if ``quiet``."""
    if quiet:
        yield Silent()
    elif not console.is_terminal:
        yield _Lines(console)
    else:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            yield _Bars(bars)


class _Bars:
    """One bar for the cells and one for the attack that runs."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._cells: TaskID | None = None
        self._attack: TaskID | None = None

    def started(self, total: int, done: int) -> None:
        self._cells = self._bars.add_task("cells", total=total, completed=done, note="")

    def cell_started(self, cell: Cell) -> Callable[[float, str], None]:
        if self._attack is not None:
            self._bars.remove_task(self._attack)
        task = self._attack = self._bars.add_task(cell.label(), total=100, note="")

        def report(fraction: float, message: str) -> None:
            self._bars.update(task, completed=round(100 * fraction), note=message)

        return report

    def cell_finished(self, record: Record) -> None:
        if self._cells is not None:
            self._bars.advance(self._cells)


class _Lines:
    """One plain line per cell, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = self._done = 0

    def started(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        if done:
            self._say(f"{done} of {total} cells are there already")

    def cell_started(self, cell: Cell) -> Callable[[float, str], None] | None:
        return None

    def cell_finished(self, record: Record) -> None:
        self._done += 1
        seconds = sum(record.seconds.values())
        self._say(
            f"[{self._done}/{self._total}] {record.attack_name()} against {record.defense_name()}: "
            f"{record.status['name']} in {seconds:.1f} s"
        )

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
