"""Theory before practice. Says which conditions of recovery hold, what is expected and which noise would stop it; no
attack is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradleak.cli.common import options
from gradleak.cli.common.output import errors_shown, out, print_json


def predict(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="As for `audit`; minilm without it.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Read the laws for your own records instead of a stand-in batch."),
    ] = None,
    text_column: options.TextColumn = None,
    batch_size: options.BatchSize = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", min=2, help="Tokens per record.")] = None,
    loss: options.Loss = None,
    share: Annotated[
        str | None,
        typer.Option("--share", metavar="SPEC", help="gradient or delta(steps=1, lr=0.001, optimizer=sgd)."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="Number format of the update: float32, bf16 or fp16.")
    ] = None,
    noise_multiplier: Annotated[
        float | None,
        typer.Option("--noise-multiplier", min=0.0, help="Noise in units of the norm of the whole update."),
    ] = None,
    relative_std: Annotated[
        float | None,
        typer.Option("--relative-std", min=0.0, help="Noise in units of each tensor's root mean square."),
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option("--lora-rank", min=1, help="Also ask what adapters of this rank would hold.")
    ] = None,
    observation: Annotated[
        Path | None,
        typer.Option("--observation", metavar="PATH", help="Also read the noise of a captured update off itself."),
    ] = None,
    influence: Annotated[
        str | None,
        typer.Option(
            "--influence",
            metavar="DEFENSE",
            help="Also predict how far this defense, such as 'prune(fraction=0.9)', moves what an attacker recovers.",
        ),
    ] = None,
    seed: options.Seed = 0,
    settings: options.Settings = None,
    as_json: options.Json = False,
) -> None:
    """Say what theory expects of attacks on this model's update; run none."""
    with errors_shown():
        overrides = options.parse_settings(settings)
        from gradleak import api

        foreseen = api.predict(
            model,
            data=data,
            text_column=text_column,
            batch_size=batch_size,
            seq_len=seq_len,
            loss=loss,
            share=share,
            dtype=dtype,
            noise_multiplier=noise_multiplier,
            relative_std=relative_std,
            lora_rank=lora_rank,
            observation=observation,
            influence=influence,
            seed=seed,
            settings=overrides,
        )
        if as_json:
            print_json(foreseen.to_plain())
            return
        from gradleak.report.terminal.prediction import page

        out().print(page(foreseen))
