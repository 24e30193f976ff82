"""Shows whether this installation can audit, before an audit is tried."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from gradleak.cli.common.options import Json
from gradleak.cli.common.output import errors_shown, out, print_json


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Also estimate what an audit of this model takes.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show versions, the attention switch, extras, threads and memory."""
    with errors_shown():
        from gradleak import api

        found = api.doctor(model)
        if as_json:
            print_json(found)
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for section, value in found.items():
            for key, text in _rows(section, value):
                table.add_row(key, text)
        out().print(table)


def _rows(section: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [(f"{section}.{key}", _text(part)) for key, part in value.items()]
    return [(section, _text(value))]


def _text(value: Any) -> str:
    # By type: one thread is not "yes".
    if value is None or isinstance(value, bool):
        return {None: "not there", True: "yes", False: "no"}[value]
    return str(value)
