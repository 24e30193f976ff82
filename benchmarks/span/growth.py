"""How the cost of the span attack grows: with batch, length, vocabulary and width for a decoder, beside the stated bound for an encoder.

    python -m benchmarks.span.growth          # four minutes on one core

Decoder: the shape of GPT-2 small, two blocks (the search reads no more), random weights and tokens, every position filled. One size
changes at a time; the others stay at 4 records × 16 tokens, 50,257 words, width 768. CPU seconds of the search, median of the
seeds, after one search that is thrown away. Exponents are slopes of a straight line through logarithms, with 95 % t-intervals; where a cost
does not depend on the size (the vocabulary's share at small width, say), the exponent over a finite range is below the true one.

Encoder: MiniLM. Multiplications in matrix products are counted (torch's flop counter, halved) from the released gradient to the
sentences, and stand beside I · (P·T)² · (m + 2P)² of docs/span.md with I = 22 (a pair is an anchor twice at most, 11 steps each),
P·T the pairs of position and candidate, m = 2 (width − rank) equations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from scipy.stats import t
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import run
from benchmarks.common.chart import Axis, Series, write_chart
from benchmarks.common.words import text_stream
from benchmarks.span import speed
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

_STEPS = 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    batch: int = 4
    length: int = 16
    vocabulary: int = 50_257
    width: int = 768


SWEEPS: Mapping[str, Sequence[int]] = {
    "batch": (1, 2, 4, 8, 16, 32),
    "length": (16, 32, 64, 128),
    "vocabulary": (12_500, 25_000, 50_257, 100_000, 200_000),
    "width": (256, 384, 512, 768, 1024, 1536),
}
ENCODER = (
    *((speed.Cell(group="growth", batch=b, length=16, model="minilm", full=True)) for b in (1, 2, 4, 8, 16)),
    *((speed.Cell(group="growth", batch=b, length=16, model="minilm", data="text")) for b in (1, 2, 4, 8)),
)


def decoder(size: Size) -> Subject:
    settings = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "num_attention_heads": size.width // 64,
        "num_hidden_layers": 2,
    }
    return load_subject("random:gpt2", loss="classification", settings=settings)


def observe(subject: Subject, batch: Batch, seed: int) -> Observation:
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(batch, derive(seed, "training"))
    facts = {"subject": subject, "batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
    return Observation(update=update, knowledge=Knowledge(facts=facts))


def search(observation: Observation, seed: int) -> Reconstruction:
    return Span()(observation, rng=derive(seed, "attack"), clock=Clock(120.0))


def seconds(size: Size, subject: Subject, seed: int) -> tuple[float, bool]:
    """CPU seconds of the search, and whether every record came back."""
    cell = speed.Cell(group="growth", batch=size.batch, length=size.length, full=True)
    batch = speed.make_batch(cell, subject, seed, ())
    observation = observe(subject, batch, seed)
    start = time.process_time()
    found = search(observation, seed)
    spent = time.process_time() - start
    scored = speed.score(found, batch, "classification")
    return spent, scored["exact"] == scored["records"] and not scored["wrong"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponent:
    value: float
    half_width: float

    @staticmethod
    def of(points: Sequence[tuple[float, float]]) -> Exponent:
        logs = torch.tensor(points, dtype=torch.float64).log()
        x, y = (logs - logs.mean(dim=0)).T
        slope = float((x * y).sum() / x.square().sum())
        error = float(((y - slope * x).square().sum() / (len(points) - 2) / x.square().sum()).sqrt())
        return Exponent(value=slope, half_width=float(t.ppf(0.975, len(points) - 2)) * error)

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.half_width:.2f}"


def decoder_points(seeds: int) -> dict[str, list[tuple[float, float]]]:
    seconds(Size(), decoder(Size()), 1000)
    found: dict[str, list[tuple[float, float]]] = {}
    print("| size | values | CPU s of the search | all records exact | exponent |\n|---|---|---|---|---|")
    for name, values in SWEEPS.items():
        points, exact = [], True
        for value in values:
            size = replace(Size(), **{name: value})
            subject = decoder(size)
            runs = [seconds(size, subject, seed) for seed in range(seeds)]
            points.append((float(value), median(spent for spent, _ in runs)))
            exact &= all(right for _, right in runs)
        found[name] = points
        shown = ", ".join(f"{value:.0f}" for value, _ in points), ", ".join(f"{spent:.2f}" for _, spent in points)
        print(f"| {name} | {shown[0]} | {shown[1]} | {'yes' if exact else 'no'} | {Exponent.of(points)} |", flush=True)
    return found


def encoder_points(seeds: int) -> dict[str, list[tuple[float, float]]]:
    stream, subject = text_stream(), load_subject("minilm", loss="classification")
    found: dict[str, list[tuple[float, float]]] = {}
    print("| batch | words | exact | pairs P·T | multiplications | bound | bound ÷ multiplications | CPU s |")
    print("|---" * 8 + "|")
    for cell in ENCODER:
        rows = []
        for seed in range(seeds):
            batch = speed.make_batch(cell, subject, seed, stream)
            observation = observe(subject, batch, seed)
            start = time.process_time()
            with FlopCounterMode(display=False) as counter:
                result = search(observation, seed)
            spent = time.process_time() - start
            facts = result.statistics
            pairs = facts["candidates_mean"] * facts["positions"]
            rank = min(value for name, value in facts.items() if name.startswith("rank_context"))
            equations = 2 * (facts["width"] - rank) + 2 * facts["positions"]
            rows.append(
                (
                    pairs,
                    counter.get_total_flops() / 2,
                    _STEPS * (pairs * equations) ** 2,
                    spent,
                    speed.score(result, batch, "classification"),
                )
            )
        pairs, counted, bound, spent = (median(row[i] for row in rows) for i in range(4))
        exact, records = (sum(row[4][key] for row in rows) for key in ("exact", "records"))
        least = min(row[2] / row[1] for row in rows)
        print(
            f"| {cell.batch}×{cell.length} | {cell.data} | {exact}/{records} | {pairs:.0f} | {counted:.1e} | {bound:.1e} | {least:.0f} | {spent:.2f} |",
            flush=True,
        )
        for name, value in ((f"{cell.data}, counted", counted), (f"{cell.data}, bound", bound)):
            found.setdefault(name, []).append((pairs, value))
    return found


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print("# The span attack: growth\n")
    print("What is measured and what stays fixed stands at the top of the script.")
    print("Plots: [growth](../../../docs/span-growth.svg), [bound](../../../docs/span-bound.svg).\n\n## Decoder\n")
    times = decoder_points(asked.seeds)
    print("\n## Encoder\n\nThe least ratio of the seeds is shown beside medians of the rest.\n")
    counts = encoder_points(asked.seeds)
    write_chart(
        asked.charts / "span-growth.svg",
        title="Search time of span against one size at a time (decoder)",
        x=Axis(label="size, in units of the smallest of its row", log=True),
        y=Axis(label="CPU seconds", log=True),
        series=[
            Series(label=f"{name}: exponent {Exponent.of(points)}", points=[(x / points[0][0], y) for x, y in points])
            for name, points in times.items()
        ],
    )
    write_chart(
        asked.charts / "span-bound.svg",
        title="Multiplications of the encoder search and the stated bound (MiniLM)",
        x=Axis(label="pairs of position and candidate, P·T", log=True),
        y=Axis(label="multiplications", log=True),
        series=[
            Series(label=f"{name}: exponent {Exponent.of(points)}", points=points, dashed=name.endswith("bound"))
            for name, points in counts.items()
        ],
    )
    exponents = ", ".join(f"{name} {Exponent.of(points)}" for name, points in counts.items())
    print(f"\nExponents in the number of pairs: {exponents}.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--charts", type=Path, default=run.BENCHMARKS.parent / "docs")
    asked = run.parse(parser, argv)
    with run.record(__file__, asked, seeds=range(asked.seeds)):
        print_page(asked)


if __name__ == "__main__":
    main()
