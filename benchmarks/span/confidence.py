"""Is what `span` claims of its tokens true? Claimed probability against the fraction that is right.

    python -m benchmarks.span.confidence --fit                       # a, b, c of span/likelihood/confidence.py, seeds 0-11
    python -m benchmarks.span.confidence --seeds 100 130 --large 100 102 --encoders 100 103

A token is right if the private record that its proposal is matched to (one-to-one, most agreeing tokens) holds it in this place;
of a bag, if some record of the batch holds it. Certificates are left out, for nothing that they prove can be wrong: the attack is
not given the trainer. Noise is measured by the attack, not announced. Intervals are the exact ones of Clopper and Pearson at
95 %, as if tokens were independent; those of one batch are not, so read them as lower widths. ``expected`` is what the claims
say of the number of right tokens. Decoders under noise: a GPT-2 of width 64 or 128 with 500 tokens (small), and GPT-2's own width
and vocabulary (large); random tokens, random lengths, none of these seeds was used to fit. Encoders: MiniLM's own weights.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, minimize

from benchmarks.common import run
from benchmarks.common.chart import Axis, Series, write_chart
from benchmarks.common.words import text_stream
from benchmarks.span.speed import Cell, make_batch
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.harness.judging.intervals import clopper_pearson
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.span import strategy as span_blurred
from gradleak.span.likelihood import confidence as span_confidence
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE

BINS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 1.0 + 1e-9)
SMALL = ((4, 8, 64), (8, 8, 128))
NOISES = (0.03, 0.1, 0.3, 1.0)
SECONDS = 120.0


@dataclass(slots=True)
class Claims:
    """Claimed probabilities, and which tokens were right."""

    claimed: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    ordered: list[bool] = field(default_factory=list)
    cases: int = 0
    seconds: float = 0.0

    def add(self, found: Reconstruction, batch: Batch) -> None:
        self.cases += 1
        if not found.confidence:  # a bag of which nothing is claimed
            return
        truth = [record.tolist() for record in batch.records()]
        for sure, right in zip(found.confidence, tokens_right(found, truth), strict=True):
            self.claimed += sure.tolist()
            self.right += right
            self.ordered += [found.ordered] * len(right)

    def line(self, name: str) -> str:
        claimed, right = np.array(self.claimed), np.array(self.right)
        brier = float(((claimed - right) ** 2).mean()) if len(claimed) else math.nan
        return (
            f"| {name} | {self.cases} | {len(claimed)} | {claimed.sum():.1f} | {right.sum()} | {brier:.3f} "
            f"| {self.seconds / max(1, self.cases):.1f} |"
        )


def tokens_right(found: Reconstruction, truth: Sequence[list[int]]) -> list[list[bool]]:
    proposed = [record.tolist() for record in found.records]
    if not found.ordered:
        held = {token for record in truth for token in record}
        return [[token in held for token in ids] for ids in proposed]
    if not proposed:
        return []
    agree = np.array([[sum(a == b for a, b in zip(t, ids, strict=False)) for ids in proposed] for t in truth])
    rows, columns = linear_sum_assignment(agree, maximize=True)
    matched: list[list[int]] = [[] for _ in proposed]
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        matched[column] = truth[row]
    return [
        [p < len(true) and true[p] == token for p, token in enumerate(ids)]
        for ids, true in zip(proposed, matched, strict=True)
    ]


def small_case(records: int, length: int, width: int, noise: float, seed: int) -> tuple[Subject, Batch, Observation]:
    settings = {
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 500,
        "max_position_embeddings": 32,
        "initializer_range": 0.05,
    }
    subject = load_subject("random:gpt2", loss="classification", settings=settings, seed=seed)
    rng = derive(seed, "span-confidence", records, length)
    lengths = torch.randint(length // 2, length + 1, (records,), generator=rng)
    lengths[0] = length
    mask = torch.arange(length) < lengths.unsqueeze(1)
    ids = torch.randint(3, 500, (records, length), generator=rng).masked_fill(~mask, 0)
    batch = Batch(inputs=ids, mask=mask, labels=torch.arange(records) % 2)
    return subject, batch, observe(subject, batch, f"gaussian(relative_std={noise})", seed)


def observe(subject: Subject, batch: Batch, stage: str, seed: int) -> Observation:
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    channel = Channel(trainer=trainer, stages=catalogue.make_stages(stage))
    facts = {"subject": subject, "batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
    return Observation(update=channel.observe(batch, derive(seed, "noise")), knowledge=Knowledge(facts=facts))


def attacked(observation: Observation, batch: Batch, seed: int, claims: Claims) -> None:
    start = time.process_time()
    found = Span()(observation, rng=derive(seed, "span"), clock=Clock(SECONDS))
    claims.seconds += time.process_time() - start
    claims.add(found, batch)


def small(seeds: Iterable[int], *, bound: bool = False) -> Iterator[tuple[str, Claims]]:
    """``bound``: the attack is told three times the number of records. Then it proposes sequences where it would else see that
    they are too many, and falls back on a bag: more wrong tokens to be weighed."""
    seeds = list(seeds)
    for frozen, (records, length, width), noise in itertools.product((False, True), SMALL, NOISES):
        claims = Claims()
        for seed in seeds:
            subject, batch, seen = small_case(records, length, width, noise, seed)
            facts = {**seen.knowledge.facts, "batch_size": records * (3 if bound else 1)}
            seen = Observation(update=seen.update, knowledge=Knowledge(facts=facts))
            attacked(without_tables(seen, subject) if frozen else seen, batch, seed, claims)
        notes = (", embeddings frozen" if frozen else "") + (", number of records open" if bound else "")
        yield f"decoder, {records}x{length}, width {width}{notes}, noise {noise:g}", claims


def without_tables(observation: Observation, subject: Subject) -> Observation:
    tables = {subject.anatomy.token_embedding, subject.anatomy.position_embedding}
    update = Update({name: tensor for name, tensor in observation.update.items() if name not in tables})
    return Observation(update=update, knowledge=observation.knowledge)


def benchmark_cells(cells: Sequence[Cell], seeds: Iterable[int]) -> Iterator[tuple[str, Claims]]:
    stream, seeds = text_stream(), list(seeds)
    for cell in cells:
        claims = Claims()
        subject = load_subject(cell.model, loss="classification")
        for seed in seeds:
            batch = make_batch(cell, subject, seed, stream)
            attacked(observe(subject, batch, cell.stage, seed), batch, seed, claims)
        kind = "encoder" if subject.anatomy.kind == "encoder" else "decoder, GPT-2 shape"
        yield f"{kind}, {cell.batch}x{cell.length} {cell.data}, {cell.stage}", claims


def large_cells() -> list[Cell]:
    return [Cell(group="c", batch=4, length=16, stage=f"gaussian(relative_std={s})") for s in (0.3, 1.0)]


def encoder_cells() -> list[Cell]:
    stages = ("gaussian(relative_std=0.01)", "gaussian(relative_std=0.03)", "quantize(dtype=int8)")
    return [Cell(group="c", batch=4, length=16, data="text", model="minilm", stage=s) for s in stages]


def fit(seeds: Iterable[int]) -> None:
    """a, b and c by maximum likelihood over the records that leave something unexplained."""
    odds: list[float] = []
    right: list[bool] = []
    original = span_confidence.token_confidence

    def raw(*given: object) -> tuple[torch.Tensor, ...]:
        told = span_confidence.log_odds_against(*given)  # type: ignore[arg-type]
        # Any one-to-one map into [0, 1] will do: it is undone below.
        return tuple(each / (2 * span_confidence.CLEAR) + 0.5 for each in told)

    span_blurred.token_confidence = raw  # type: ignore[assignment]
    for _, claims in small(seeds, bound=True):
        for value, good, ordered in zip(claims.claimed, claims.right, claims.ordered, strict=True):
            if ordered and value != 1 - FALSE_ALARM_RATE:
                odds.append((value - 0.5) * 2 * span_confidence.CLEAR)
                right.append(good)
    span_blurred.token_confidence = original
    x, y = np.array(odds), np.array(right)

    def loss(parameters: np.ndarray) -> float:
        a, b, c = parameters
        logit = a - b * np.minimum(x, c)
        return float(np.logaddexp(0, np.where(y, -logit, logit)).mean())

    best = min((minimize(loss, (0.7, 0.3, c), method="Nelder-Mead") for c in (-2.0, 2.0, 8.0)), key=lambda r: r.fun)
    print(f"{len(x)} tokens, {y.mean():.3f} right; a, b, c = {best.x.round(2).tolist()}, log loss {best.fun:.4f}")


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if asked.fit:
        fit(range(12))
        return
    print("| case | batches | tokens | expected right | right | Brier score | CPU s |\n" + "|---" * 7 + "|")
    every = Claims()
    sources = (
        small(range(*asked.seeds)),
        small(range(*asked.seeds), bound=True),
        benchmark_cells(large_cells(), range(*asked.large)),
        benchmark_cells(encoder_cells(), range(*asked.encoders)),
    )
    for source in sources:
        for name, claims in source:
            print(claims.line(name), flush=True)
            every.claimed += claims.claimed
            every.right += claims.right
            every.cases += claims.cases
            every.seconds += claims.seconds
    print(every.line("all"))
    print("\n| claimed | tokens | mean claim | fraction right | 95 % interval |\n|---|---|---|---|---|")
    points, bars = [], []
    claimed, right = np.array(every.claimed), np.array(every.right)
    for low, high in itertools.pairwise(BINS):
        inside = (claimed >= low) & (claimed < high)
        if not inside.any():
            continue
        hits, count = int(right[inside].sum()), int(inside.sum())
        below, above = clopper_pearson(hits, count)
        points.append((float(claimed[inside].mean()), hits / count))
        bars.append((below, above))
        print(
            f"| {low:g} – {min(high, 1):g} | {count} | {points[-1][0]:.3f} | {hits / count:.3f} | {below:.3f} – {above:.3f} |"
        )
    if asked.chart is not None:
        diagonal = Series(label="claims that are true", points=((0.0, 0.0), (1.0, 1.0)), dashed=True)
        measured = Series(label="measured, with 95 % intervals", points=points, bars=bars, dots=True)
        write_chart(
            asked.chart,
            title="What span claims of its tokens, and what is right",
            x=Axis(label="claimed probability", low=0.0, high=1.0),
            y=Axis(label="fraction right", low=0.0, high=1.0),
            series=(diagonal, measured),
        )


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--fit", action="store_true")
    reader.add_argument("--seeds", nargs=2, type=int, default=(100, 130), metavar=("FIRST", "END"))
    reader.add_argument("--large", nargs=2, type=int, default=(100, 102), metavar=("FIRST", "END"))
    reader.add_argument("--encoders", nargs=2, type=int, default=(100, 103), metavar=("FIRST", "END"))
    reader.add_argument("--chart", type=Path)
    asked = run.parse(reader, argv)
    asked.page = asked.page or ("confidence_fit" if asked.fit else "")
    with run.record(
        __file__, asked, seeds=sorted({*range(*asked.seeds), *range(*asked.large), *range(*asked.encoders)})
    ):
        print_page(asked)


if __name__ == "__main__":
    main()
