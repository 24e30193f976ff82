"""Do the results of the span attack hinge on its hand-set constants? Each one halved and doubled, alone.

    python -m benchmarks.span.constants       # two minutes on one core

Decoder cells are of the shape of GPT-2 small, encoder cells MiniLM; seed 11, which no constant was chosen on. Shares and rates that
cannot be doubled go half way to one. Shown: records found beside those of the constants as they are, and CPU seconds of all cells.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.common import run
from benchmarks.common.words import text_stream
from benchmarks.span import speed
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

_SEED = 11
DECODER = {
    "mechanics.subspace.subspace": ("_LADDER", "_CLEAR", "_NARROW"),
    "mechanics.subspace.spectrum": ("OVERSAMPLING", "_FILLED", "_ENTRIES", "_PROBES"),
    "span.candidates.membership": ("_NULL_PAIRS", "_CLEAR"),
    "span.candidates.window": ("_FIRST_WINDOW",),
    "span.candidates.factored_test": (
        "_SKETCH_COLUMNS",
        "_SCREEN_COLUMNS",
        "_TILT_COLUMNS",
        "_LENGTH_COLUMNS",
        "_MISSED",
        "_CANCELLATION",
    ),
    "span.reading.readers": ("FALSE_ALARM_RATE",),
    "span.decoder.continuations": ("DECOYS", "_DECOY_TOKENS", "_NULL_ROWS", "_DECISIVE", "_WORTH_SCREENING", "_FEW"),
    "span.decoder.projections": (
        "_OUTSIDE_COLUMNS",
        "_TILT_COLUMNS",
        "_LENGTH_COLUMNS",
        "_ROUGH_COLUMNS",
        "_SHARP_ROUGH_COLUMNS",
        "_CLEAR",
        "_SHARP_COLUMNS",
    ),
    "span.decoder.screen": ("_MISSED",),
}
ENCODER = {
    "span.encoder.subset_selection": (
        "_LOOSE",
        "_HARD",
        "_FIRST_DUAL",
        "_TO_THE_WALL",
        "_DONE",
        "_WARM_UP",
        "PLAUSIBLE",
        "RANDOM",
    ),
    "span.encoder.sentence_search": (
        "_ENUMERATE_AT_MOST",
        "_NULL_SENTENCES",
        "_STEPS",
        "_PRICE",
        "_GROWTH",
        "_POOL",
    ),
    "span.encoder.proposals": ("_MORE_ANCHORS",),
    "span.encoder.attention_equations": ("_EQUATIONS_PER_POSITION", "_NULL_ROWS"),
}
SHARES = ("_FILLED", "_TO_THE_WALL")


def cells() -> dict[str, tuple[speed.Cell, ...]]:
    return {
        "decoder": (
            speed.Cell(group="constants", batch=4, length=16),
            speed.Cell(group="constants", batch=16, length=16, data="text"),
            speed.Cell(group="constants", batch=16, length=16, data="text", dtype="bf16"),
            speed.Cell(group="constants", batch=47, length=16, full=True),
        ),
        "encoder": (
            speed.Cell(group="constants", batch=8, length=16, model="minilm", full=True),
            speed.Cell(group="constants", batch=4, length=16, model="minilm", data="text"),
        ),
    }


def observe(cell: speed.Cell, stream: Sequence[int]) -> tuple[Batch, Observation]:
    subject = load_subject(cell.model, loss="classification")
    batch = speed.make_batch(cell, subject, _SEED, stream)
    training = LocalTraining(dtype=cell.dtype)  # type: ignore[arg-type]
    update = ClientTrainer(subject=subject, training=training).update(batch, derive(_SEED, "training"))
    facts = {"subject": subject, "batch_size": cell.batch, "seq_len": cell.length}
    return batch, Observation(update=update, knowledge=Knowledge(facts=facts))


def changed(name: str, value: Any, factor: float) -> Any:
    """A constant times two or one half; a share goes half way to one instead."""
    if isinstance(value, tuple):
        return tuple(changed(name, each, factor) for each in value)
    if name in SHARES and factor > 1:
        return (1.0 + value) / 2
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def holders(module: str, name: str) -> list[ModuleType]:
    """The module of a constant, and all loaded ones that import it by name: each holds a binding of its own."""
    home = importlib.import_module(f"gradleak.{module}")
    loaded = [other for key, other in sys.modules.items() if key.startswith("gradleak.")]
    return [home, *(other for other in loaded if imports(other, home.__name__, name))]


def imports(module: ModuleType, home: str, name: str) -> bool:
    """Whether the source of a module has this name from that home."""
    statements = ast.walk(ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8")))
    taken = (alias.name for s in statements if isinstance(s, ast.ImportFrom) and s.module == home for alias in s.names)
    return name in taken


@contextmanager
def constant(name: str, old: Any, new: Any, modules: Sequence[ModuleType]) -> Iterator[None]:
    """Inside, the constant has another value in these modules."""
    try:
        for module in modules:
            setattr(module, name, new)
        yield
    finally:
        for module in modules:
            setattr(module, name, old)


def outcome(cases: Sequence[tuple[Batch, Observation]]) -> tuple[str, float]:
    """Exact records (and wrong ones) of every cell, and CPU seconds of all."""
    shown, start = [], time.process_time()
    for batch, observation in cases:
        found = Span()(observation, rng=derive(_SEED, "attack"), clock=Clock(120.0))
        scored = speed.score(found, batch, "classification")
        shown.append(f"{scored['exact']}" + (f" (+{scored['wrong']} wrong)" if scored["wrong"] else ""))
    return ", ".join(shown), time.process_time() - start


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    stream = text_stream()
    print("# The span attack: do results hinge on hand-set constants?")
    for kind, names in (("decoder", DECODER), ("encoder", ENCODER)):
        if kind not in asked.kinds.split(","):
            continue
        cases = [observe(cell, stream) for cell in cells()[kind]]
        outcome(cases)
        plain, spent = outcome(cases)
        sizes = ", ".join(f"{c.batch}×{c.length} {c.data} {c.dtype}" for c in cells()[kind])
        print(f"\n## {kind.capitalize()}: {sizes}\n\nAs they are: {plain} records exact, {spent:.1f} CPU s.\n")
        print("| constant | value | halved | CPU s | doubled | CPU s |\n|---|---|---|---|---|---|")
        for module, constants in names.items():
            for name in constants:
                modules, columns = holders(module, name), []
                old = getattr(modules[0], name)
                for factor in (0.5, 2.0):
                    with constant(name, old, changed(name, old, factor), modules):
                        try:
                            shown, spent = outcome(cases)
                        except RuntimeError as reason:
                            shown, spent = f"fails: {type(reason).__name__}", float("nan")
                    columns += ["same" if shown == plain else shown, f"{spent:.1f}"]
                print(f"| `{module}.{name}` | {old} | " + " | ".join(columns) + " |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--kinds", default="decoder,encoder", help="comma-separated")
    asked = run.parse(parser, argv)
    with run.record(__file__, asked, seeds=(_SEED,)):
        print_page(asked)


if __name__ == "__main__":
    main()
