"""The points of a frontier as rows for a terminal. Must not know how they are computed."""

from __future__ import annotations

from rich import box
from rich.table import Table

from gradleak.report.conclusions.frontier import Sweep, caption, rows


def terminal_table(sweep: Sweep) -> Table:
    """The points as rows for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption(sweep), caption_justify="left")
    for column in (
        "knob",
        f"leakage ({sweep.metric})",
        "guessing",
        "best attack",
        "accuracy",
        "drop",
        "ε, one release",
        "CPU s",
        "front",
    ):
        table.add_column(column, justify="left" if column in {"best attack", "front"} else "right")
    for row in rows(sweep):
        table.add_row(
            row.knob,
            row.leakage,
            row.guessing,
            row.attack,
            row.accuracy,
            row.drop,
            row.guarantee,
            row.seconds,
            row.front,
        )
    return table
