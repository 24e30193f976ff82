"""The first question about a file that somebody holds: what is it? One screen, and no attack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradleak.cli.common import options
from gradleak.cli.common.output import errors_shown, out, print_json

if TYPE_CHECKING:
    from gradleak.harness.captured.inspection import Inspection

_KINDS: Mapping[str, str] = {
    "gradient": "a gradient",
    "delta": "a difference of weights",
    "weights": "whole weights",
    "adapter": "the weights of an adapter",
    "unknown": "nothing that is known here",
}
_FORMATS: Mapping[str, str] = {
    "float32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "grid": "a few equidistant levels",
    "signs": "signs of one size",
}
_SHOWN = 3


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .safetensors file, or a folder of one: what gradleak.capture wrote, shards, an adapter.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The model that was trained: names and vocabulary are compared."),
    ] = None,
    reference: options.Reference = None,
    loss: options.Loss = None,
    seed: options.Seed = 0,
    settings: options.Settings = None,
    as_json: options.Json = False,
) -> None:
    """Say what a captured file is: kind, number format, noise, scale, names."""
    with errors_shown():
        overrides = options.parse_settings(settings)
        from gradleak.harness.captured.inspection import inspect_update

        inspection = inspect_update(file, model, reference=reference, loss=loss, settings=overrides, seed=seed)
        if as_json:
            print_json(inspection.to_plain())
        else:
            console = out()
            for label, text in lines(inspection):
                console.print(f"{label:<9}{text}", markup=False, highlight=False, soft_wrap=True)


def lines(inspection: Inspection) -> list[tuple[str, str]]:
    """The inspection as label and text, one screen at most."""
    n = inspection.numbers
    size = f"norm {n.norm:.4g}, root mean square {n.rms:.3g}"
    rows = [
        ("kind", f"{_KINDS[inspection.kind]} ({inspection.tensors} tensors){_direction(inspection)}"),
        *(("", sentence) for sentence in inspection.evidence),
        ("format", _format(inspection)),
        ("scale", size + (f"; a norm of {n.clip:g} to four digits, as clipping leaves it" if n.clip else "")),
        ("noise", _noise(inspection)),
        ("zeros", _zeros(inspection)),
    ]
    if inspection.names is not None:
        names = inspection.names
        behind = f" behind {names.prefix!r}" if names.prefix else ""
        rows.append(("names", f"{len(names.own)} of {inspection.tensors} fit the model{behind}"))
        parts = (
            ("adapter", names.adapters),
            ("tied", names.aliases),
            ("unknown", names.unknown),
            ("missing", names.missing),
        )
        rows += [("", f"{word}: {_some(listed)}") for word, listed in parts if listed]
    if inspection.span is not None:
        s = inspection.span
        rows.append(
            ("span", f"rank {s.rank} of {s.width} at the first attention, {s.tokens} tokens of the vocabulary in it")
        )
    return [*rows, *(("note", remark) for remark in inspection.remarks)]


def _direction(inspection: Inspection) -> str:
    words = {1: ", after minus before", -1: ", before minus after", None: ""}[inspection.sign]
    return words + (", the reference taken off" if inspection.subtracted else "")


def _format(inspection: Inspection) -> str:
    n = inspection.numbers
    how = "sums or averages of " if n.summed else ""
    return f"{how}{_FORMATS[n.format]}, stored as {', '.join(n.stored)}"


def _noise(inspection: Inspection) -> str:
    noise = inspection.numbers.noise
    if noise.size is None or noise.low is None or noise.high is None:
        return {"none": "none that the singular values show"}.get(noise.kind, "not visible in matrices of these sizes")
    what = (
        "of each entry's size" if noise.kind == "proportional" else "of the root mean square, the same for all entries"
    )
    return f"{noise.size:.3g} {what} (95% interval {noise.low:.3g} to {noise.high:.3g})"


def _zeros(inspection: Inspection) -> str:
    n = inspection.numbers
    text = f"{n.zeros:.1%} of the entries"
    text += f", {n.idle_rows:.1%} of the rows of the largest table" if n.idle_rows else ""
    return text + (f"; small entries were left out of {_some(n.pruned)}" if n.pruned else "")


def _some(names: tuple[str, ...]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
