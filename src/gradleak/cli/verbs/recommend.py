"""Reads frontiers that were run and names the cheapest setting that meets what was asked, or says that none does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradleak.cli.common.options import Json
from gradleak.cli.common.output import INCONCLUSIVE, errors_shown, out, print_json


def recommend(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders that `gradleak audit --frontier` wrote.", show_default=False),
    ],
    leakage_below: Annotated[
        float, typer.Option("--leakage-below", metavar="X", help="Largest leakage allowed, a share such as 0.3.")
    ],
    drop_below: Annotated[
        float,
        typer.Option("--accuracy-drop-below", metavar="Y", help="Largest loss of accuracy allowed, such as 0.05."),
    ],
    as_json: Json = False,
) -> None:
    """Name the cheapest setting of a defense that met both limits, or say that none did (exit code 3)."""
    with errors_shown():
        from dataclasses import asdict

        from gradleak import api

        answer = api.recommend(runs, leakage_below=leakage_below, accuracy_drop_below=drop_below)
        if as_json:
            print_json({**asdict(answer), "sentences": answer.sentences()})
        else:
            first, *rest = answer.sentences()
            out().print(first, style="bold", markup=False, highlight=False)
            for sentence in rest:
                out().print(f"  {sentence}", markup=False, highlight=False)
        if answer.found is None:
            raise typer.Exit(INCONCLUSIVE)
