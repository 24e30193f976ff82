"""What there is, what it needs, where it comes from."""

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
        from gradleak import api

        methods: dict[str, list[api.Method]] = {}
        for method in api.list_methods(kind):
            methods.setdefault(method.kind, []).append(method)
        if as_json:
            print_json(
                {
                    group: [{"name": method.name, "summary": method.summary} for method in members]
                    for group, members in methods.items()
                }
            )
            return
        for group, members in methods.items():
            table = Table(title=group, title_justify="left", title_style="bold", box=None, pad_edge=False)
            table.add_column("name", style="cyan", no_wrap=True)
            table.add_column("summary")
            for method in members:
                table.add_row(method.name, method.summary)
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
        from gradleak import api

        explanation = api.explain(name, kind=kind)
        if as_json:
            print_json(explanation)
        else:
            _print(explanation)


def schema(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="record: a line of records.jsonl.", show_default=False)],
) -> None:
    """Print the JSON schema of what gradleak writes."""
    with errors_shown():
        from gradleak.core.errors import UnknownNameError
        from gradleak.core.record import record_schema

        if what != "record":
            raise UnknownNameError("schema", what, ("record",))
        print_json(record_schema())


def _print(explanation: dict[str, Any]) -> None:
    console = out()
    console.print(f"{explanation['name']} ({explanation['kind']})", style="bold", markup=False)
    console.print(explanation["description"] or explanation["summary"], markup=False, highlight=False)
    for argument in explanation["arguments"]:
        value = "required" if argument["required"] else f"default {argument['default']}"
        console.print(
            f"  {argument['name']}: {argument['type']}, {value}. {argument['meaning']}", markup=False, highlight=False
        )
    for title in ("needs", "uses", "facts"):
        for fact, meaning in (explanation.get(title) or {}).items():
            console.print(f"  {title} {fact}: {meaning}", markup=False, highlight=False)
    for title, text in explanation["sections"].items():
        if title not in {"Args", "Attributes"}:
            console.print(f"\n{title}: {text}", markup=False, highlight=False)
