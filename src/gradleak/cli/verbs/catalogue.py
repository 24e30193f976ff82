"""Why: what there is, what it needs, where it comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from gradleak.cli.common.options import Json
from gradleak.cli.common.output import errors_shown, out, print_json


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]", help="attacks, defenses, metrics or threats; all without it.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List attacks, defenses, metrics and threat models."""
    with errors_shown():
        from gradleak.harness.request.catalogue import KINDS, explain, names

        kinds = KINDS if kind is None else (kind,)
        found = {each: [explain(each, name) for name in names(each)] for each in kinds}
        if as_json:
            print_json(
                {
                    each: [{"name": e["name"], "summary": e["summary"]} for e in entries]
                    for each, entries in found.items()
                }
            )
            return
        for each, entries in found.items():
            table = Table(title=each, title_justify="left", title_style="bold", box=None, pad_edge=False)
            table.add_column("name", style="cyan", no_wrap=True)
            table.add_column("summary")
            for entry in entries:
                table.add_row(entry["name"], entry["summary"])
            out().print(table, "")


def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `gradleak list` shows.", show_default=False)],
    kind: Annotated[
        str | None, typer.Option("--kind", help="attacks, defenses, metrics or threats, if several have the name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain one attack, defense, metric or threat model."""
    with errors_shown():
        from gradleak.harness.request import catalogue

        found = catalogue.explain(kind, name)
        if as_json:
            print_json(found)
        else:
            _print(found)


def _print(found: dict[str, Any]) -> None:
    console = out()
    console.print(f"{found['name']} ({found['kind']})", style="bold", markup=False)
    console.print(found["description"] or found["summary"], markup=False, highlight=False)
    for argument in found["arguments"]:
        value = "required" if argument["required"] else f"default {argument['default']}"
        console.print(
            f"  {argument['name']}: {argument['type']}, {value}. {argument['meaning']}", markup=False, highlight=False
        )
    for title in ("needs", "uses", "facts"):
        for fact, meaning in (found.get(title) or {}).items():
            console.print(f"  {title} {fact}: {meaning}", markup=False, highlight=False)
    for title, text in found["sections"].items():
        if title not in {"Args", "Attributes"}:
            console.print(f"\n{title}: {text}", markup=False, highlight=False)
