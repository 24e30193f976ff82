"""What changed between two runs over the same batches, as paired differences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from gradleak.cli.common.options import Json
from gradleak.cli.common.output import INCONCLUSIVE, errors_shown, out, print_json

if TYPE_CHECKING:
    from gradleak.report.conclusions.compare import Comparison, Difference


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run folder.", show_default=False)],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="Another, over the same batches: same data, seed, sizes.")
    ],
    metrics: Annotated[
        str, typer.Option("--metrics", metavar="A,B", help="Metrics to print; --json holds all of them.")
    ] = "exact_match,token_recall,psnr",
    as_json: Json = False,
) -> None:
    """Compare two runs batch by batch: B minus A, with an interval. Exit code 3 if they share no cell."""
    with errors_shown():
        from dataclasses import asdict

        from gradleak import api

        found = api.compare(first, second)
        if as_json:
            print_json(asdict(found))
        else:
            _print(found, tuple(name.strip() for name in metrics.split(",")))
        if not found.differences:
            raise typer.Exit(INCONCLUSIVE)


def _print(found: Comparison, metrics: tuple[str, ...]) -> None:
    console = out()
    for change in found.changed or ("the plans are the same",):
        console.print(f"A → B  {change}", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("defense", "attack", "metric"):
        table.add_column(column, overflow="fold")
    for column in ("A", "B", "B − A [95%]", "batches"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found.differences:
        if one.metric in metrics:
            table.add_row(
                one.defense,
                one.attack,
                one.metric,
                f"{one.first:.3g}",
                f"{one.second:.3g}",
                _gain(one),
                str(one.pairs),
                style="bold" if one.low is not None and one.high is not None and one.low * one.high > 0 else None,
            )
    console.print(table)
    console.print("bold: the interval excludes zero · no interval: one batch, or equal gains in all", style="dim")
    for name in found.unpaired:
        console.print(f"in one run only: {name}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _gain(one: Difference) -> str:
    spread = "" if one.low is None or one.high is None else f" [{one.low:+.3g}, {one.high:+.3g}]"
    return f"{one.gain:+.3g}{spread}"
