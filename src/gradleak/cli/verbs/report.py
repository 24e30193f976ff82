"""Renders a run again, for instance with the recovered content in clear."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradleak.cli.common.options import Json, Reveal
from gradleak.cli.common.output import errors_shown, out, print_json


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder that `gradleak audit` or `attack` wrote.", show_default=False),
    ],
    as_json: Json = False,
    reveal: Reveal = False,
) -> None:
    """Render the report of a run folder again."""
    with errors_shown():
        from dataclasses import asdict

        from gradleak.harness.captured.folder import CAPTURED, read_captured
        from gradleak.harness.running.store import read_records
        from gradleak.report import write
        from gradleak.report.conclusions.verdict import verdict

        if (run / CAPTURED).is_file():
            from gradleak.cli.verbs.attack import show

            show(read_captured(run), run, write(run, reveal=reveal), as_json=as_json)
            return
        records = read_records(run)
        page = write(run, reveal=reveal)
        reading = verdict(records)
        if as_json:
            print_json(
                {
                    "run": str(run),
                    "report": str(page),
                    "verdict": asdict(reading),
                    "records": [asdict(r) for r in records],
                }
            )
        else:
            out().print(reading.headline, style="bold", markup=False)
            out().print(f"Report: {page}", markup=False, soft_wrap=True)
