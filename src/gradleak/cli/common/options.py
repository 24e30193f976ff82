"""Options that several verbs share, and the small readers of their values. Must not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gradleak.core.errors import SpecError
from gradleak.core.specs import parse_value

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
Reveal = Annotated[bool, typer.Option("--reveal", help="Show recovered content in clear. Reports redact it otherwise.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random draw.")]
Loss = Annotated[
    str | None,
    typer.Option("--loss", metavar="NAME", help="classification, causal-lm or masked-lm. Default: the model's own."),
]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="Column of the text in .csv and .jsonl.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Records in the shared batch.")]
Attacks = Annotated[
    str | None,
    typer.Option(
        "--attacks", metavar="A,B(arg=value)", help="Attacks, separated by commas; see `gradleak list attacks`."
    ),
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="TIME", help="Time for all attacks together, shared evenly: 90s, 5m, 1h."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Config of a random:TYPE model, such as hidden_size=128. Repeatable."
    ),
]
FirstBlocks = Annotated[
    int | None,
    typer.Option(
        "--first-blocks",
        metavar="N",
        min=1,
        help="Load only the embeddings, the first N blocks and the head: enough for attacks that do not replay.",
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="WEIGHTS",
        help="The weights that the round began with (.safetensors, checkpoint or adapter folder), to be taken off whole weights.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write to.")]


def parse_budget(text: str | None) -> float | None:
    """Seconds of ``90s``, ``5m``, ``1.5h`` or ``300``. Raises ``SpecError`` for anything else, zero included."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds <= 0:
        raise SpecError(f"Cannot read --budget {text!r}. Write a positive time such as 90s, 5m or 1h.")
    return seconds


def parse_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Reads ``key=value`` pairs. Raises ``SpecError`` for anything else or a key given twice."""
    settings: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = (part.strip() for part in text.partition("="))
        if not key or not equals or not value:
            raise SpecError(f"Cannot read --set {text!r}. Write key=value, for example --set hidden_size=128.")
        if key in settings:
            raise SpecError(f"--set {key} is given twice. Leave one out.")
        settings[key] = parse_value(value)
    return settings
