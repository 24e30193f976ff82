"""The main job. Reads options, prepares everything that can be wrong, runs, writes the report, prints the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradleak.cli.common import options
from gradleak.cli.common.output import FAILED, INCONCLUSIVE, INTERRUPTED, err, errors_shown, new_folder, out, print_json

if TYPE_CHECKING:
    from gradleak.harness.request.prepare import Prepared


def audit(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A local directory or hub id of a Hugging Face model, minilm, or random:TYPE such as random:gpt2. "
            "Without it, the demonstration: minilm on shipped messages.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FILE", help="Private records: .txt (one a line), .csv, .jsonl, or a folder of images."
        ),
    ] = None,
    text_column: options.TextColumn = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Column of the label in .csv and .jsonl.")
    ] = None,
    batch_size: options.BatchSize = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Tokens per record; longer ones are cut.")
    ] = None,
    loss: options.Loss = None,
    share: Annotated[
        str | None,
        typer.Option(
            "--share",
            metavar="SPEC",
            help="gradient(dtype=bf16, micro_batch=4), delta(epochs=10, mini_batch=4, lr=0.001, momentum=0.9) or lora(rank=16).",
        ),
    ] = None,
    attacks: options.Attacks = None,
    defenses: Annotated[
        list[str] | None,
        typer.Option(
            "--defenses",
            metavar="SPEC",
            help="A chain such as clip(max_norm=1.0)+gaussian(noise_multiplier=0.5). Repeatable.",
        ),
    ] = None,
    threat: Annotated[
        str | None,
        typer.Option("--threat", metavar="NAME", help="What the adversary knows; see `gradleak list threats`."),
    ] = None,
    seed: options.Seed = 0,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Batches to draw; more narrow the intervals.")] = 1,
    budget: options.Budget = None,
    out_dir: options.Out = None,
    settings: options.Settings = None,
    first_blocks: options.FirstBlocks = None,
    frontier: Annotated[
        str | None,
        typer.Option(
            "--frontier",
            metavar="SPEC",
            help="Sweep one defense, such as 'gaussian(relative_std={knob})': leakage against accuracy.",
        ),
    ] = None,
    knobs: Annotated[
        str | None, typer.Option("--knobs", metavar="A,B,C", help="Numbers that stand for {knob} in turn.")
    ] = None,
    utility_rounds: Annotated[
        int | None, typer.Option("--utility-rounds", help="Rounds of the short trainings of a frontier.")
    ] = None,
    utility_seeds: Annotated[
        int | None, typer.Option("--utility-seeds", help="Trainings per value of the knob.")
    ] = None,
    bound: Annotated[
        str | None,
        typer.Option(
            "--bound",
            metavar="PRIOR",
            help="Beside a frontier over a noise multiplier: what anyone could recover of a secret from sentences, token or "
            "attribute; see `gradleak bound`.",
        ),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option("--candidates", metavar="K", help="Length of the list of --bound. Default: up to 512.")
    ] = None,
    measured: Annotated[
        int | None,
        typer.Option("--measured", metavar="N", help="Secrets that --bound attacks at each noise level. Default: 30."),
    ] = None,
    as_json: options.Json = False,
    reveal: options.Reveal = False,
) -> None:
    """Attack a model's shared update, judge what was recovered, write a report."""
    with errors_shown():
        overrides, seconds = options.parse_settings(settings), options.parse_budget(budget)
        from gradleak.cli.verbs.audit_bounds import Bounding
        from gradleak.cli.verbs.audit_frontier import Wanted
        from gradleak.harness.request import defaults
        from gradleak.harness.request.prepare import Request, prepare

        wanted = Wanted.read(frontier, knobs, defenses, rounds=utility_rounds, seeds=utility_seeds)
        bounding = Bounding.read(
            bound,
            candidates=candidates,
            measured=measured,
            frontier=None if wanted is None else (wanted.template, wanted.knobs),
            attacks=attacks,
        )
        chains = defenses if wanted is None else wanted.chains()
        prepared = prepare(
            Request(
                model=model,
                data=data,
                text_column=text_column,
                label_column=label_column,
                batch_size=batch_size,
                max_length=max_length,
                loss=loss,
                share=share,
                attacks=attacks,
                defenses=None if chains is None else tuple(chains),
                threat=threat,
                seed=seed,
                repeats=repeats,
                budget_seconds=seconds,
                settings=overrides,
                first_blocks=first_blocks,
                default_attacks=defaults.ATTACKS if wanted is None else defaults.FRONTIER_ATTACKS,
            )
        )
        folder = out_dir or new_folder(prepared.plan.model)
        if wanted is not None:
            prepared = wanted.checked(prepared, folder)
        if bounding is not None:
            prepared = bounding.checked(prepared)
        if prepared.subject.extent is not None and not as_json:
            err().print(prepared.subject.loaded, soft_wrap=True, highlight=False)
        _run(prepared, folder, quiet=as_json)
        if wanted is not None:
            wanted.measure(prepared, folder, quiet=as_json)
        chain = None if bounding is None else bounding.run(prepared, folder, quiet=as_json)
        _show(folder, chain, as_json=as_json, reveal=reveal)
        if chain is not None and any(step["violated"] for step in chain["steps"]):
            raise typer.Exit(FAILED)


def _run(prepared: Prepared, folder: Path, *, quiet: bool) -> None:
    from gradleak.cli.common.progress import progress_for
    from gradleak.harness.running.runner import run
    from gradleak.harness.running.store import RunFolder

    with RunFolder(folder, prepared.plan) as store:
        try:
            with progress_for(err(), quiet=quiet) as progress:
                run(prepared.plan, prepared.subject, prepared.source, store, progress)
        except KeyboardInterrupt:
            err().print(
                f"Interrupted: {len(store.records)} of {prepared.plan.count()} cells are stored. "
                f"To resume, repeat the same command with --out {folder}",
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None


def _show(folder: Path, chain: dict[str, Any] | None, *, as_json: bool, reveal: bool) -> None:
    from dataclasses import asdict

    from gradleak.cli.verbs.bound import show_chain
    from gradleak.harness.running.store import read_records
    from gradleak.report import write
    from gradleak.report.conclusions.frontier import read_sweep, remarks
    from gradleak.report.conclusions.verdict import verdict
    from gradleak.report.terminal.frontier import terminal_table
    from gradleak.report.terminal.table import table

    records = read_records(folder)
    page = write(folder, reveal=reveal)
    reading, sweep = verdict(records), read_sweep(folder, records)
    if as_json:
        print_json(
            {
                "run": str(folder),
                "report": str(page),
                "verdict": asdict(reading),
                **({} if sweep is None else {"frontier": sweep.to_plain()}),
                **({} if chain is None else {"bounds": chain}),
                "records": [asdict(r) for r in records],
            }
        )
    else:
        console = out()
        console.print(table(records))
        if sweep is not None:
            console.print(terminal_table(sweep))
            for remark in remarks(sweep):
                console.print(f"  {remark}", markup=False, highlight=False)
        if chain is not None:
            show_chain(chain, sweep)
        console.print(reading.headline, style="bold", markup=False)
        for sentence in reading.sentences:
            console.print(f"  {sentence}", markup=False, highlight=False)
        console.print(f"\nReport: {page}", markup=False, soft_wrap=True)
    if not reading.conclusive:
        raise typer.Exit(INCONCLUSIVE)
