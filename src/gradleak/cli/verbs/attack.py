"""A captured update is attacked without its truth: what comes out is a proposal with a status, a probability and, where the attack can, a
certificate. There is nothing to score it against.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gradleak.cli.common import options
from gradleak.cli.common.output import INCONCLUSIVE, err, errors_shown, new_folder, out, print_json

if TYPE_CHECKING:
    from gradleak.harness.captured.attack import Attacked, Finding

DEFAULT_BUDGET = "10m"


def attack(
    observation: Annotated[
        Path,
        typer.Argument(
            metavar="UPDATE",
            help="A folder that gradleak.capture wrote, a .safetensors file, shards, or an adapter folder.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="The model that was trained, as for `audit`, or a PEFT adapter folder."
        ),
    ],
    reference: options.Reference = None,
    attacks: options.Attacks = None,
    loss: options.Loss = None,
    seed: options.Seed = 0,
    budget: options.Budget = DEFAULT_BUDGET,
    out_dir: options.Out = None,
    settings: options.Settings = None,
    first_blocks: options.FirstBlocks = None,
    as_json: options.Json = False,
    reveal: options.Reveal = False,
) -> None:
    """Attack one captured update, say what was read, write a report."""
    with errors_shown():
        overrides, seconds = options.parse_settings(settings), options.parse_budget(budget)
        from gradleak.harness.captured.attack import attack_capture
        from gradleak.harness.captured.folder import check_new, read_captured, write_captured
        from gradleak.report import write

        folder = out_dir or new_folder(model, "-captured")
        check_new(folder)
        attacked = attack_capture(
            observation,
            model,
            reference=reference,
            attacks=attacks,
            loss=loss,
            settings=overrides,
            seed=seed,
            budget_seconds=seconds,
            first_blocks=first_blocks,
            listener=None if as_json else _Lines(),
        )
        write_captured(
            attacked, folder, update=str(observation), model=model, command=shlex.join(["gradleak", *sys.argv[1:]])
        )
        page = write(folder, reveal=reveal)
        contents = None if as_json and not reveal else _contents(attacked, reveal=reveal)
        shown = show(read_captured(folder), folder, page, as_json=as_json, contents=contents)
        if not as_json and not reveal and any(finding.reconstruction.records for finding in attacked.findings):
            out().print("Recovered content is redacted; --reveal shows it.", style="dim")
        if not shown:
            raise typer.Exit(INCONCLUSIVE)


def show(
    plain: Mapping[str, Any],
    folder: Path,
    page: Path,
    *,
    as_json: bool,
    contents: list[list[str]] | None = None,
) -> bool:
    """Prints what attacks on a captured update came to; whether any of them proposes something.

    Args:
        plain: what ``captured.json`` holds.
        contents: lines per finding: in clear where asked for, else how much there is.
    """
    from dataclasses import asdict

    from gradleak.report.conclusions.captured import captured_verdict

    reading = captured_verdict(plain["findings"], plain["inspection"]["remarks"])
    if as_json:
        records = [{} for _ in plain["findings"]] if contents is None else [{"records": lines} for lines in contents]
        print_json(
            {
                "observation": plain["update"],
                "run": str(folder),
                "report": str(page),
                "verdict": asdict(reading),
                "inspection": plain["inspection"],
                "findings": [finding | extra for finding, extra in zip(plain["findings"], records, strict=True)],
            }
        )
        return any(finding["lengths"] for finding in plain["findings"])
    console = out()
    if plain["findings"]:
        console.print(plain["findings"][0]["loaded"], soft_wrap=True, highlight=False)
    console.print(_table(plain["findings"]))
    for finding, lines in zip(plain["findings"], contents or [], strict=False):
        for index, content in enumerate(lines):
            line = f"{finding['attack']['type']} {index + 1}: {content}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(reading.headline, style="bold", markup=False)
    for sentence in reading.sentences:
        console.print(f"  {sentence}", markup=False, highlight=False)
    console.print(f"\nReport: {page}", markup=False, soft_wrap=True)
    return any(finding["lengths"] for finding in plain["findings"])


def _contents(attacked: Attacked, *, reveal: bool) -> list[list[str]]:
    return [finding.contents() if reveal else finding.redacted() for finding in attacked.findings]


def _table(findings: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("attack", "status", "records", "probability", "certificate", "objective"):
        table.add_column(column, overflow="fold")
    table.add_column("message", overflow="fold")
    for plain in findings:
        claims = [sure for record in plain["confidence"] for sure in record]
        cells = (
            plain["attack"]["type"],
            plain["status"],
            len(plain["lengths"]),
            f"{min(claims):.3g} to {max(claims):.3g}" if claims else None,
            plain["certificate"],
            plain["objective"],
        )
        table.add_row(*(_cell(value) for value in cells), Text(plain["message"]))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class _Lines:
    """One plain line when an attack starts and one when it ends, on standard error, also where that is a pipe."""

    def started(self, name: str, number: int, total: int) -> Callable[[float, str], None] | None:
        err().print(f"[{number}/{total}] {name} …", markup=False, highlight=False, soft_wrap=True)
        return None

    def finished(self, finding: Finding, number: int, total: int) -> None:
        status = finding.reconstruction.status.name
        line = f"[{number}/{total}] {finding.name}: {status} in {finding.seconds:.1f} s"
        err().print(line, markup=False, highlight=False, soft_wrap=True)
