"""Speed and reach of the span attack: what is recovered, in how much time, beside the floor.

    python -m benchmarks.span.speed --out runs/span                     # every cell; half an hour on two cores; resumes
    python -m benchmarks.span.speed --groups speed,reach --repeats 3
    python -m benchmarks.span.speed --table runs/span                   # prints the tables again

F, the floor, is one gradient of the same batch plus one pass of the vocabulary through a 32-column sketch: the median of five
measurements after one that is thrown away, in the same process just before the attack. The attack runs once, and what it
touches for the first time is in its time. A second floor is stated in operations: one vocabulary projection (2·V·d·32) and one
pass of the candidates (distinct tokens and positions) through the first block's queries, keys and values (2·d·their outputs)
and through their attention with each prefix (4·d per prefix, candidate and earlier position); "÷ floor" is search time over
what these operations take at the speed of this machine's matrix product, measured beside. Bytes are those of the token table and
of the gradients that are read, each once. Times are of the
search alone, after the update is there; the certificate costs one more gradient and is left out (the attack is not given
the trainer, so it cannot recompute the update). Lengths are uniform between half and the full length, the first record has
the full one, and the rest is padded; groups ``reach`` and ``beyond`` fill every position. Tokens are uniform over the
vocabulary, or consecutive tokens of real English (scikit-learn's data set descriptions) from random starts. Seeds are
0 … repeats − 1, unless ``--first-seed`` says otherwise. Cells with ``frozen`` train no embedding table. Noise is never announced to the attack: it measures it. The attack
reads the tables' gradients only where the span is too full, or noise blurs it. It has 120 seconds
(``--seconds``), by the wall clock.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment

from benchmarks.common import run
from benchmarks.common.words import text_stream
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.harness.judging.intervals import clopper_pearson
from gradleak.harness.request.catalogue import Catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.theory.identifiability.placement import most_placed


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One row of a table."""

    group: str
    batch: int
    length: int
    data: str = "random"
    model: str = "random:gpt2"
    loss: str = "classification"
    full: bool = False
    share: str = "gradient"
    dtype: str = "float32"
    steps: int = 1
    lr: float = 1e-3
    stage: str = "none"
    frozen: bool = False

    @property
    def name(self) -> str:
        plain = {k: v for k, v in asdict(self).items() if v != getattr(_DEFAULT, k)}
        parts = [self.group, f"{self.batch}x{self.length}", *(f"{k}={plain[k]}" for k in plain if k in _NAMED)]
        return re.sub(r"[^\w.=()-]+", "_", " ".join(parts))


_BUDGET_SECONDS = 120.0
_NAMED = ("data", "model", "loss", "dtype", "share", "steps", "lr", "stage", "frozen")
_DEFAULT = Cell(group="", batch=0, length=0)


def cells() -> list[Cell]:
    sizes = [(1, 16), (4, 16), (16, 16), (16, 32)]
    found = [Cell(group="speed", batch=b, length=n, data=d) for d in ("random", "text") for b, n in sizes]
    found += [Cell(group="reach", batch=b, length=n, full=True) for b, n in ((47, 16), (32, 23), (64, 11), (1, 256))]
    found += [Cell(group="beyond", batch=b, length=16, full=True) for b in (64, 128)]
    found += [Cell(group="loss", batch=b, length=16, loss="causal-lm") for b in (4, 16)]
    kinds = ("gpt_neox", "llama", "mistral", "qwen2", "gemma", "opt", "phi")
    found += [Cell(group="families", batch=8, length=16, model=f"random:{kind}") for kind in kinds]
    found += [
        Cell(group="precision", batch=16, length=16, data=d, dtype=t)
        for d in ("random", "text")
        for t in ("bf16", "fp16")
    ]
    found += [Cell(group="precision", batch=16, length=16, stage="quantize(dtype=int8)")]
    levels = (1e-3, 1e-2, 1e-1)
    found += [
        Cell(group="noise", batch=b, length=16, stage=f"gaussian(relative_std={s})") for b in (4, 16) for s in levels
    ]
    found += [Cell(group="noise", batch=b, length=16, data="text", stage="gaussian(relative_std=0.1)") for b in (4, 16)]
    sizes = [(1, 16), (1, 32), (4, 16), (8, 16), (16, 16), (8, 32)]
    found += [Cell(group="encoder", batch=b, length=n, model="minilm", full=True) for b, n in sizes]
    sizes = [(2, 32), (4, 16), (8, 16), (16, 16)]
    found += [Cell(group="encoder", batch=b, length=n, model="minilm", data="text") for b, n in sizes]
    found += [
        Cell(group="encoder-frozen", batch=b, length=n, model="minilm", data="text", frozen=True) for b, n in sizes[:3]
    ]
    kinds = ("bert", "roberta", "distilbert")
    found += [Cell(group="encoder", batch=8, length=16, model=f"random:{kind}") for kind in kinds]
    sizes, kinds = [(8, 16, "random", True), (4, 16, "text", False)], ("bf16", "fp16")
    for b, n, d, full in sizes:
        base = Cell(group="encoder-noise", batch=b, length=n, model="minilm", data=d, full=full)
        found += [replace(base, dtype=t) for t in kinds] + [replace(base, stage="quantize(dtype=int8)")]
        found += [replace(base, stage=f"gaussian(relative_std={s})") for s in levels]
    found += [Cell(group="fedavg", batch=16, length=16, share="delta", steps=10, lr=5e-4)]
    return found


def make_batch(cell: Cell, subject: Subject, seed: int, stream: Sequence[int]) -> Batch:
    rng = derive(seed, "span-benchmark", cell.batch, cell.length)
    shape = (cell.batch, cell.length)
    lengths = torch.randint(max(2, cell.length // 2), cell.length + 1, (cell.batch,), generator=rng)
    lengths = (
        torch.full_like(lengths, cell.length) if cell.full else lengths.index_fill(0, torch.tensor([0]), cell.length)
    )
    mask = torch.arange(cell.length) < lengths.unsqueeze(1)
    if cell.data == "text":
        starts = torch.randint(len(stream) - cell.length, (cell.batch,), generator=rng).tolist()
        ids = torch.tensor([stream[s : s + cell.length] for s in starts])
    else:
        ids = torch.randint(3, subject.anatomy.vocab_size, shape, generator=rng)
    if subject.anatomy.kind == "encoder" and subject.tokenizer is not None:
        # Sentences of an encoder open and close with the tokenizer's own marks.
        marks = subject.tokenizer.encode(["a"], 8)[0][0]
        ids[:, 0], ids[torch.arange(cell.batch), lengths - 1] = marks[0], marks[2]
    ids = ids.masked_fill(~mask, 0)
    labels = torch.randint(subject.classes, (cell.batch,), generator=rng)
    return Batch(
        inputs=ids,
        mask=mask,
        labels=labels if subject.loss.name == "classification" else ids.masked_fill(~mask, IGNORED),
    )


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """MiB by which resident memory rose above its start, sampled every two milliseconds."""
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page / 2**20

    start, highest, stop = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            highest[0] = max(highest[0], resident() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: highest[0]
    finally:
        stop.set()
        thread.join()


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall seconds and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - wall, time.process_time() - cpu


def without_embeddings(subject: Subject) -> Subject:
    """The same subject where the tables of tokens, positions and segments are not trained."""
    tables = [name for name, part in subject.module.named_modules() if isinstance(part, torch.nn.Embedding)]
    return replace(subject, frozen=subject.frozen | {f"{name}.weight" for name in tables})


def measure(
    cell: Cell, subject: Subject, seed: int, stream: Sequence[int], *, seconds: float = _BUDGET_SECONDS
) -> dict[str, Any]:
    subject = without_embeddings(subject) if cell.frozen else subject
    batch = make_batch(cell, subject, seed, stream)
    training = LocalTraining(share=cell.share, dtype=cell.dtype, steps=cell.steps, lr=cell.lr)  # type: ignore[arg-type]
    trainer = ClientTrainer(subject=subject, training=training)
    channel = Channel(trainer=trainer, stages=Catalogue().make_stages(cell.stage))
    plain = replace(trainer, training=LocalTraining())
    gradient_wall, gradient_cpu = typical(lambda: plain.update(batch, derive(seed, "floor")))
    update = channel.observe(batch, derive(seed, "channel"))
    table = subject.module.get_parameter(subject.anatomy.token_embedding or "").detach()
    directions = torch.randn(table.shape[1], 32, generator=derive(seed, "sketch"))
    sketch_wall, sketch_cpu = typical(lambda: table @ directions)
    facts: dict[str, Any] = {"subject": subject, "batch_size": batch.size, "seq_len": cell.length}
    if cell.share == "delta":
        facts["trainer"] = trainer
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    with peak_memory() as peak:
        found, wall, cpu = timed(lambda: Span()(observation, rng=derive(seed, "attack"), clock=Clock(seconds)))
    return {
        "cell": asdict(cell),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "tokens": int(batch.mask.sum()),
        "distinct": len(batch.inputs[batch.mask].unique()),
        "width": subject.anatomy.hidden_size,
        **score(found, batch, subject.loss.name),
        "status": found.status.name,
        "message": found.message,
        "statistics": dict(found.statistics),
        "wall": wall,
        "cpu": cpu,
        "floor_wall": gradient_wall + sketch_wall,
        "floor_cpu": gradient_cpu + sketch_cpu,
        "peak_mib": peak(),
        **stated_floor(batch, subject, update, found),
    }


def typical(work: Callable[[], Any]) -> tuple[float, float]:
    """Median wall and processor seconds of five runs after a first one."""
    runs = [timed(work)[1:] for _ in range(6)][1:]
    return median(wall for wall, _ in runs), median(cpu for _, cpu in runs)


def stated_floor(batch: Batch, subject: Subject, update: Update, found: Reconstruction) -> dict[str, float]:
    """Operations and bytes that no search of this kind can do without, and the seconds that this machine needs for the former."""
    block, width = subject.anatomy.blocks[0], subject.anatomy.hidden_size
    outputs = sum(each.out_features for each in block.attention_inputs)
    tokens, positions = len(batch.inputs[batch.mask].unique()), batch.inputs.shape[1]
    operations = 2.0 * width * (32 * subject.anatomy.vocab_size + outputs * (tokens + positions))
    # Candidates behind prefixes, as many as were tested, attend to half of the positions on average.
    operations += 4.0 * width * found.statistics.get("tested", 0.0) * positions / 2
    read = [subject.anatomy.token_embedding or ""]
    read += [each.weight for each in (*block.attention_inputs, block.attention_output, *block.mlp_inputs)]
    square = torch.randn(1024, 1024)
    _, seconds = typical(lambda: square @ square)
    return {
        "floor_operations": operations,
        "floor_bytes": float(sum(4 * subject.module.get_parameter(name).numel() for name in read)),
        "floor_stated_cpu": operations * seconds / (2.0 * 1024**3),
    }


def score(found: Reconstruction, batch: Batch, loss: str) -> dict[str, Any]:
    """Records recovered exactly, wrong ones, and the bag of tokens. The last token under an LM loss is not asked for."""
    shown = [r[:-1] if loss == "causal-lm" else r for r in batch.records()]
    truth = {tuple(record.tolist()) for record in shown}
    guesses = {tuple(record.tolist()) for record in found.records} if found.ordered else set()
    bag = {token for record in truth for token in record}
    seen = {token for record in found.records for token in record.tolist()}
    return {
        "records": len(truth),
        "exact": len(truth & guesses),
        "wrong": len(guesses - truth),
        "bag_recall": len(bag & seen) / len(bag),
        "bag_precision": len(bag & seen) / len(seen) if seen else math.nan,
        "rouge1": rouge1([r.tolist() for r in shown], [r.tolist() for r in found.records]),
    }


def rouge1(truth: Sequence[Sequence[int]], guesses: Sequence[Sequence[int]]) -> float:
    """Mean over the true records of the F-measure of tokens (multisets, no order) with the record matched to it, one-to-one."""
    if not guesses:
        return 0.0
    counts = [Counter(record) for record in truth], [Counter(record) for record in guesses]
    overlap = torch.tensor(
        [[2 * (a & b).total() / (a.total() + b.total()) for b in counts[1]] for a in counts[0]], dtype=torch.float64
    ).numpy()
    matched = linear_sum_assignment(overlap, maximize=True)
    return float(overlap[matched].sum()) / len(truth)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, one table per group; times are medians over seeds, exact records are pooled."""
    lines: list[str] = []
    for group in dict.fromkeys(r["cell"]["group"] for r in results):
        lines += [f"\n### {group}\n", _HEAD, "|---" * (_HEAD.count("|") - 1) + "|"]
        mine = [r for r in results if r["cell"]["group"] == group]
        for name in dict.fromkeys(Cell(**r["cell"]).name for r in mine):
            rows = [r for r in mine if Cell(**r["cell"]).name == name]
            lines.append(_row(name.removeprefix(f"{group}_").replace("_", " "), rows))
        if group == "beyond":
            lines += ["", *_limits(mine)]
    speed = [r for r in results if r["cell"]["group"] in {"speed", "reach"} and r["cell"]["data"] == "random"]
    return "\n".join(lines + ([_growth(speed)] if len(speed) > 3 else []))


def _limits(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What theory allows, for every size."""
    for size in dict.fromkeys((r["cell"]["batch"], r["cell"]["length"], r["width"]) for r in results):
        batch, length, width = size
        mine = [r for r in results if (r["cell"]["batch"], r["cell"]["length"], r["width"]) == size]
        yield (
            f"{batch} × {length}: what theory allows. A span tells at most {width - 1} inputs of {batch * length}, so nothing is proven by rank. The rows of the token "
            f"table tell all {median(r['distinct'] for r in mine):.0f} tokens that occur; both tables determine the place of up to "
            f"{most_placed(width, length)} that occur once each (`theory/identifiability/placement.py`), and {batch * length - median(r['distinct'] for r in mine):.0f} "
            "slots hold a token that occurs elsewhere, too, whose place they only make likely. Which tokens share a record no count tells: it is weighed.\n"
        )


_HEAD = (
    "| cell | tokens | records exact [95 %] | wrong | R-1 (least) | bag recall | bag precision | search CPU s | floor F CPU s | search ÷ F | "
    "floor GFLOP | floor MB | ÷ floor | search wall s | peak MiB |"
)


def _row(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    exact, records = sum(r["exact"] for r in rows), sum(r["records"] for r in rows)
    low, high = clopper_pearson(exact, records)
    ratio = median(r["cpu"] / r["floor_cpu"] for r in rows)
    middle = {key: median(r[key] for r in rows) for key in ("tokens", "cpu", "floor_cpu", "wall", "peak_mib")}
    timed = rows[0]["cell"]["share"] == "gradient"
    stated = " | ".join(
        (
            f"{median(r['floor_operations'] for r in rows) / 1e9:.1f}",
            f"{rows[0]['floor_bytes'] / 1e6:.0f}",
            f"{median(r['cpu'] / r['floor_stated_cpu'] for r in rows):.1f}",
        )
        if all("floor_operations" in r for r in rows)
        else "– | – | –"
    )
    return (
        f"| {name} | {middle['tokens']:.0f} | {exact}/{records} [{low:.2f}, {high:.2f}] | {sum(r['wrong'] for r in rows)} "
        f"| {100 * min(r.get('rouge1', math.nan) for r in rows):.1f} | {min(r['bag_recall'] for r in rows):.2f} | {min(r['bag_precision'] for r in rows):.2f} | "
        + (
            f"{middle['cpu']:.2f} | {middle['floor_cpu']:.2f} | {ratio:.2f} | {stated} | {middle['wall']:.2f} |"
            if timed
            else "– | – | – | – | – | – | – |"
        )
        + f" {middle['peak_mib']:.0f} |"
    )


def _growth(results: Sequence[Mapping[str, Any]]) -> str:
    """The exponent of search time against tokens, by least squares on logarithms."""
    points = torch.tensor([[math.log(r["tokens"]), math.log(r["cpu"])] for r in results], dtype=torch.float64)
    centered = points - points.mean(dim=0)
    slope = float((centered[:, 0] * centered[:, 1]).sum() / centered[:, 0].square().sum())
    return f"\nSearch CPU time grows as tokens^{slope:.2f} over the cells with random tokens (groups speed and reach)."


def print_page(arguments: argparse.Namespace, recording: run.Recording) -> None:
    torch.set_num_threads(arguments.threads)
    folder = arguments.table or arguments.out
    wanted = [c for c in cells() if not arguments.groups or c.group in arguments.groups.split(",")]
    if arguments.table is None:
        stream = text_stream()
        for model, loss in dict.fromkeys((c.model, c.loss) for c in wanted):
            subject = load_subject(model, loss=loss)  # type: ignore[arg-type]
            for cell in (c for c in wanted if (c.model, c.loss) == (model, loss)):
                for seed in range(arguments.first_seed, arguments.first_seed + arguments.repeats):
                    work = partial(measure, cell, subject, seed, stream, seconds=arguments.seconds)
                    result = recording.cell(folder / f"{cell.name}-{seed}.json", work)
                    if result is not None:
                        print(
                            f"{cell.name} seed {seed}: {result['exact']}/{result['records']}, {result['cpu']:.2f} CPU s",
                            file=sys.stderr,
                        )
    stored = [recording.cell(folder / f"{cell.name}-{seed}.json", None) for cell in wanted for seed in range(1000)]
    print("# Speed and reach of the span attack")
    print(table([result for result in stored if result is not None]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/span"))
    parser.add_argument("--groups", default="", help="comma-separated; all if left out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=_BUDGET_SECONDS, help="wall time that one attack may take")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="print the tables of this folder and stop")
    arguments = run.parse(parser, argv)
    with run.record(
        __file__, arguments, seeds=range(arguments.first_seed, arguments.first_seed + arguments.repeats)
    ) as recording:
        print_page(arguments, recording)


if __name__ == "__main__":
    main()
