"""Why: a captured update is attacked without its truth: what comes out is a proposal with a status and, where the attack
can, a certificate. There is nothing to score it against.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gradleak.cli.common import options
from gradleak.cli.common.output import INCONCLUSIVE, errors_shown, out, print_json

if TYPE_CHECKING:
    from gradleak.harness.captured.attack import Finding


def attack(
    observation: Annotated[
        Path,
        typer.Argument(
            metavar="OBSERVATION",
            help="A folder that gradleak.capture wrote, or a .safetensors file.",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The model that was trained, as for `audit`.")],
    attacks: options.Attacks = None,
    loss: options.Loss = None,
    seed: options.Seed = 0,
    budget: options.Budget = None,
    out_dir: options.Out = None,
    settings: options.Settings = None,
    first_blocks: options.FirstBlocks = None,
    as_json: options.Json = False,
    reveal: options.Reveal = False,
) -> None:
    """Attack one captured update."""
    with errors_shown():
        overrides, seconds = options.parse_settings(settings), options.parse_budget(budget)
        from gradleak.harness.captured.attack import attack_capture, save_findings

        findings = attack_capture(
            observation,
            model,
            attacks=attacks,
            loss=loss,
            settings=overrides,
            seed=seed,
            budget_seconds=seconds,
            first_blocks=first_blocks,
        )
        if out_dir is not None:
            save_findings(findings, out_dir)
        if as_json:
            print_json(
                {"observation": str(observation), "findings": [_plain(found, reveal=reveal) for found in findings]}
            )
        else:
            _print(findings, reveal=reveal)
        if not any(found.reconstruction.records for found in findings):
            raise typer.Exit(INCONCLUSIVE)


def _plain(found: Finding, *, reveal: bool) -> dict[str, Any]:
    return found.to_plain() | ({"records": found.contents()} if reveal else {})


def _print(findings: tuple[Finding, ...], *, reveal: bool) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("attack", "status", "records", "certificate", "objective"):
        table.add_column(column, overflow="fold")
    table.add_column("message", overflow="fold")
    for found in findings:
        plain = found.to_plain()
        cells = (
            plain["attack"]["type"],
            plain["status"],
            len(plain["lengths"]),
            plain["certificate"],
            plain["objective"],
        )
        table.add_row(*(_cell(value) for value in cells), Text(plain["message"]))
    console = out()
    console.print(findings[0].loaded, soft_wrap=True, highlight=False)
    console.print(table)
    for found in findings:
        for index, content in enumerate(found.contents() if reveal else found.redacted()):
            console.print(f"{found.name} {index + 1}: {content}", markup=False, highlight=False, soft_wrap=True)
    if not reveal and any(found.reconstruction.records for found in findings):
        console.print("Recovered content is redacted; --reveal shows it.", style="dim")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
