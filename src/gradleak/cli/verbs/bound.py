"""The verb for the three numbers side by side: what an attack recovers, what anyone could, what the mechanism allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradleak.cli.common.options import Attacks, Json, Loss, Out, Seed, Settings, parse_settings
from gradleak.cli.common.output import FAILED, INTERRUPTED, err, errors_shown, new_folder, out, print_json

if TYPE_CHECKING:
    from gradleak.report.conclusions.frontier import Sweep


def bound(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="As for `audit`; minilm if left out.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Texts as for `audit`; the shipped messages if left out."),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="Column of the text in .csv and .jsonl.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Column of the label in .csv and .jsonl.")
    ] = None,
    prior: Annotated[
        str,
        typer.Option(
            "--prior",
            help="What the adversary knows beforehand: sentences or images (a list that holds the record), token (all but one "
            "token), attribute (all but one word of --values, or the label).",
        ),
    ] = "sentences",
    candidates: Annotated[
        int | None,
        typer.Option("--candidates", metavar="K", help="Length of the list. Default: up to 512.", show_default=False),
    ] = None,
    values: Annotated[
        str | None, typer.Option("--values", metavar="A,B,C", help="Words that the attribute is one of.")
    ] = None,
    max_norm: Annotated[
        float | None,
        typer.Option("--max-norm", help="Norm C to which the update is clipped. Default 1.", show_default=False),
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            "--defense",
            metavar="SPEC",
            help="In place of clip and noise of the update, such as 'dpsgd(max_norm=1.0, noise_multiplier={knob})'.",
        ),
    ] = None,
    attacks: Attacks = None,
    noise_multipliers: Annotated[
        str, typer.Option("--noise-multipliers", metavar="Z,Z,..", help="Noise levels, in units of C.")
    ] = "0.05,0.1,0.2,0.3,0.5,1,2",
    releases: Annotated[
        int, typer.Option("--releases", metavar="T", help="Releases of the same record at the same weights.")
    ] = 1,
    delta: Annotated[float, typer.Option("--delta", help="At which epsilon is stated.")] = 1e-5,
    measured: Annotated[
        int,
        typer.Option("--measured", metavar="N", help="Real releases attacked at each noise level; 0 for bounds only."),
    ] = 30,
    max_length: Annotated[
        int, typer.Option("--max-length", min=1, help="Tokens per record; longer ones are cut.")
    ] = 32,
    loss: Loss = None,
    seed: Seed = 0,
    out_dir: Out = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Compare an attack with what anyone could recover and with what the noise guarantees."""
    with errors_shown():
        overrides = parse_settings(settings)
        from gradleak import api
        from gradleak.harness.request.defaults import MODEL
        from gradleak.report import write_bounds

        folder = out_dir or new_folder(model or MODEL, "-bounds")
        with bound_progress(quiet=as_json, folder=folder) as progress:
            bounds = api.bound(
                model,
                data=data,
                text_column=text_column,
                label_column=label_column,
                prior=prior,
                candidates=candidates,
                values=tuple(values.split(",")) if values else (),
                max_norm=max_norm,
                defense=defense,
                attacks=attacks,
                noise_multipliers=tuple(part for part in noise_multipliers.split(",") if part.strip()),
                releases=releases,
                delta=delta,
                measured=measured,
                max_length=max_length,
                loss=loss,
                seed=seed,
                settings=overrides,
                out=folder,
                progress=progress,
            )
        page = write_bounds(folder)
        if as_json:
            print_json({"run": str(folder), "report": str(page), **bounds.chain})
        else:
            show_chain(dict(bounds.chain))
            out().print(f"\nReport: {page}", markup=False, soft_wrap=True)
        if bounds.violated:
            raise typer.Exit(FAILED)


@contextmanager
def bound_progress(*, quiet: bool, folder: Path) -> Iterator[Callable[[float, str], None]]:
    """As ``progress_bar``; if it is interrupted, says how to go on."""
    try:
        with progress_bar(quiet=quiet) as progress:
            yield progress
    except KeyboardInterrupt:
        err().print(
            f"Interrupted: the noise levels that are done are stored. To resume, repeat the same command with --out {folder}",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """A live bar on a terminal; a line for each new stage elsewhere; nothing if ``quiet``."""
    console = err()
    if quiet:
        yield lambda fraction, message: None
        return
    if not console.is_terminal:
        said: set[str] = set()

        def say(fraction: float, message: str) -> None:
            if message not in said:
                said.add(message)
                console.print(f"{100 * fraction:3.0f}% {message}", markup=False, highlight=False)

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda fraction, message: bars.update(task, completed=fraction, description=message)


def show_chain(plain: dict[str, Any], sweep: Sweep | None = None) -> None:
    """Prints the chain of one prior, with the accuracies of ``sweep``."""
    from gradleak.report.page.bounds import terminal_table

    console = out()
    console.print(
        f"Secret: {plain['prior']['description']} ({plain['prior']['distinct']} differ, guessing succeeds with "
        f"{plain['prior']['kappa']:.3g}). View: {plain['view']}.",
        markup=False,
        highlight=False,
    )
    console.print(terminal_table(plain, sweep))
    for step in plain["steps"]:
        z = step["rung"]["noise_multiplier"]
        for each in step["measured"]:
            if each["rate"] is None:
                console.print(f"noise multiplier {z:g}: {each['attack']}: {each['reason']}", style="dim", markup=False)
        for text in step["findings"]:
            style = "bold red" if text.startswith("VIOLATION") else "dim"
            console.print(f"noise multiplier {z:g}: {text}", style=style, markup=False, highlight=False)
