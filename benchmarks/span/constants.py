"""Do the results of the span attack hinge on its hand-set constants? Each one halved and doubled, alone.

    python benchmarks/span_constants.py       # two minutes on one core

Decoder cells are of the shape of GPT-2 small, encoder cells MiniLM; seed 11, which no constant was chosen on. Shares and rates that
cannot be doubled go half way to one. Shown: records found beside those of the constants as they are, and CPU seconds of all cells.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import span
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge
from gradleak.core.observation import Observation
from gradleak.core.rng import derive
from gradleak.harness.running.store import write_atomically
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

HERE = Path(__file__).parent
_SEED = 11
DECODER = {
    "span": ("_LADDER", "_CLEAR", "_NARROW"),
    "span_spectrum": ("OVERSAMPLING", "_FILLED", "_ENTRIES", "_PROBES"),
    "span_candidates": (
        "_FIRST_WINDOW",
        "_NULL_PAIRS",
        "_SKETCH_COLUMNS",
        "_SCREEN_COLUMNS",
        "_TILT_COLUMNS",
        "_LENGTH_COLUMNS",
        "_MISSED",
        "_CANCELLATION",
        "_CLEAR",
    ),
    "span_readers": ("FALSE_ALARM_RATE",),
    "span_context": ("DECOYS", "_DECOY_TOKENS", "_NULL_ROWS", "_DECISIVE", "_WORTH_SCREENING", "_FEW"),
    "span_reading": (
        "_OUTSIDE_COLUMNS",
        "_TILT_COLUMNS",
        "_LENGTH_COLUMNS",
        "_ROUGH_COLUMNS",
        "_SHARP_ROUGH_COLUMNS",
        "_CLEAR",
        "_SHARP_COLUMNS",
    ),
    "span_screen": ("_MISSED",),
}
ENCODER = {
    "span_selection": ("_LOOSE", "_HARD", "_FIRST_DUAL", "_TO_THE_WALL", "_DONE", "_WARM_UP", "PLAUSIBLE", "RANDOM"),
    "span_assembly": ("_ENUMERATE_AT_MOST", "_NULL_SENTENCES", "_STEPS", "_PRICE", "_MORE_ANCHORS", "_GROWTH", "_POOL"),
    "span_attention": ("_EQUATIONS_PER_POSITION", "_NULL_ROWS"),
}
SHARES = ("_FILLED", "_TO_THE_WALL")


def cells() -> dict[str, tuple[span.Cell, ...]]:
    return {
        "decoder": (
            span.Cell(group="constants", batch=4, length=16),
            span.Cell(group="constants", batch=16, length=16, data="text"),
            span.Cell(group="constants", batch=16, length=16, data="text", dtype="bf16"),
            span.Cell(group="constants", batch=47, length=16, full=True),
        ),
        "encoder": (
            span.Cell(group="constants", batch=8, length=16, model="minilm", full=True),
            span.Cell(group="constants", batch=4, length=16, model="minilm", data="text"),
        ),
    }


def observe(cell: span.Cell, stream: Sequence[int]) -> tuple[Batch, Observation]:
    subject = load_subject(cell.model, loss="classification")
    batch = span.make_batch(cell, subject, _SEED, stream)
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


@contextmanager
def constant(name: str, old: Any, new: Any, modules: Sequence[str]) -> Iterator[None]:
    """Inside, the constant has another value in these modules."""
    homes = [sys.modules[f"gradleak.mechanics.{module}"] for module in modules]
    homes = [home for home in homes if getattr(home, name, None) == old]
    try:
        for home in homes:
            setattr(home, name, new)
        yield
    finally:
        for home in homes:
            setattr(home, name, old)


def outcome(cases: Sequence[tuple[Batch, Observation]]) -> tuple[str, float]:
    """Exact records (and wrong ones) of every cell, and CPU seconds of all."""
    shown, start = [], time.process_time()
    for batch, observation in cases:
        found = Span()(observation, rng=derive(_SEED, "attack"), clock=Clock(120.0))
        scored = span.score(found, batch, "classification")
        shown.append(f"{scored['exact']}" + (f" (+{scored['wrong']} wrong)" if scored["wrong"] else ""))
    return ", ".join(shown), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "span_constants.md")
    parser.add_argument("--kinds", default="decoder,encoder", help="comma-separated")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    stream = span.text_stream()
    page = [
        "# The span attack: do results hinge on hand-set constants?",
        "",
        "Printed by `python benchmarks/span_constants.py`.",
    ]
    for kind, names in (("decoder", DECODER), ("encoder", ENCODER)):
        if kind not in asked.kinds.split(","):
            continue
        cases = [observe(cell, stream) for cell in cells()[kind]]
        outcome(cases)
        plain, spent = outcome(cases)
        sizes = ", ".join(f"{c.batch}×{c.length} {c.data} {c.dtype}" for c in cells()[kind])
        page += [
            "",
            f"## {kind.capitalize()}: {sizes}",
            "",
            f"As they are: {plain} records exact, {spent:.1f} CPU s.",
            "",
        ]
        page += ["| constant | value | halved | CPU s | doubled | CPU s |", "|---|---|---|---|---|---|"]
        for module, constants in names.items():
            for name in constants:
                old, columns = getattr(sys.modules[f"gradleak.mechanics.{module}"], name), []
                homes = ("span_readers", "span_candidates", "span_context") if name == "FALSE_ALARM_RATE" else (module,)
                homes = ("span", "span_spectrum") if name == "OVERSAMPLING" else homes
                for factor in (0.5, 2.0):
                    with constant(name, old, changed(name, old, factor), homes):
                        try:
                            shown, spent = outcome(cases)
                        except RuntimeError as reason:
                            shown, spent = f"fails: {type(reason).__name__}", float("nan")
                    columns += ["same" if shown == plain else shown, f"{spent:.1f}"]
                page.append(f"| `{module}.{name}` | {old} | " + " | ".join(columns) + " |")
                print(page[-1], flush=True)
    write_atomically(asked.results, ("\n".join(page) + "\n").encode())


if __name__ == "__main__":
    main()
