"""Is what `span` says true on text that is hard for it? Status and probability against the truth, kind by kind.

    python -m benchmarks.span.hard_text --out runs/hard                       # all cells; resumes
    python -m benchmarks.span.hard_text --kinds forms code --shapes llama --seeds 3
    python -m benchmarks.span.hard_text --hand held                           # what was written by hand and set aside

A cell is a batch of one kind of text (``hard_kinds``) on one shape under one loss: random weights of width 256 and three blocks, or a
decoder of width 128 that was trained for two minutes on text of installed packages (cached in the folder for temporary files). A
record is right if a proposal equals it token by token; under a causal language-model loss the last token counts as well. A proposal is
wrong if it is ordered and no record of the batch. Tokens are right as in ``confidence``. The attack is given the trainer, and so it
may certify; its budget is ``--seconds`` of wall clock.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import run
from benchmarks.span import hard_kinds
from benchmarks.span.confidence import BINS, tokens_right
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.judging.intervals import clopper_pearson
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

SHAPES = ("gpt2", "llama", "qwen2")
LOSSES = ("classification", "causal-lm")
CONDITIONS: Mapping[str, LocalTraining] = {
    "gradient": LocalTraining(),
    "bf16": LocalTraining(dtype="bf16"),
    "delta3": LocalTraining(share="delta", steps=3, lr=1e-3),
}
_TRAINED_STEPS, _TRAINED_ROWS, _TRAINED_LENGTH = 400, 16, 64
_RECORDS, _LENGTH = 8, 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One batch on one model.

    Attributes:
        hand: half of the inputs by hand (five records), or empty for ``seed``'s generated ones.
        trained: trained weights of width 128 in the place of random ones.
    """

    kind: str
    shape: str
    loss: str
    seed: int
    hand: str = ""
    condition: str = "gradient"
    trained: bool = False
    width: int = 256
    records: int = _RECORDS

    @property
    def name(self) -> str:
        return re.sub(r"[^\w-]+", "-", "_".join(str(value) for value in asdict(self).values() if value != ""))


def subject_of(cell: Cell) -> Subject:
    if cell.trained:
        return trained(cell.shape, cell.loss)
    return load_subject(
        f"random:{cell.shape}",
        loss=cell.loss,
        settings=_settings(cell.shape, cell.width),
        seed=cell.seed,
        tokenizer=hard_kinds.tokenizer(),
    )


def _settings(shape: str, width: int) -> dict[str, object]:
    settings: dict[str, object] = {
        "hidden_size": width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    return settings if shape == "gpt2" else settings | {"intermediate_size": 3 * width, "num_key_value_heads": 2}


def trained(shape: str, loss: str) -> Subject:
    """A decoder of width 128 after two minutes of training as a language model; a classifier gets a new head."""
    folder = Path(tempfile.gettempdir()) / "gradleak-benchmarks"
    stored = folder / f"{shape}-{_TRAINED_STEPS}-{hard_kinds.VOCABULARY}.pt"
    language = load_subject(
        f"random:{shape}", loss="causal-lm", settings=_settings(shape, 128), tokenizer=hard_kinds.tokenizer()
    )
    if not stored.is_file():
        _train(language, derive(0, "hard-text"))
        folder.mkdir(parents=True, exist_ok=True)
        part = stored.with_suffix(f".{os.getpid()}")
        torch.save(language.module.state_dict(), part)
        part.replace(stored)
    weights = torch.load(stored, weights_only=True)
    subject = language
    if loss == "classification":
        subject = load_subject(
            f"random:{shape}", loss=loss, settings=_settings(shape, 128), tokenizer=hard_kinds.tokenizer()
        )
    subject.module.load_state_dict(weights, strict=loss == "causal-lm")
    return subject


def _train(subject: Subject, rng: torch.Generator) -> None:
    stream = torch.tensor(hard_kinds.tokenizer()("\n".join(hard_kinds.corpus()), verbose=False)["input_ids"])
    optimizer = torch.optim.AdamW(subject.module.parameters(), lr=2e-3)
    for _ in range(_TRAINED_STEPS):
        starts = torch.randint(len(stream) - _TRAINED_LENGTH, (_TRAINED_ROWS, 1), generator=rng)
        ids = stream[starts + torch.arange(_TRAINED_LENGTH)]
        logits = subject.module(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    subject.module.eval()
    subject.module.zero_grad()


def batch_of(cell: Cell, subject: Subject) -> Batch:
    """Records that differ after they are cut to 24 tokens; none is empty."""
    encode = hard_kinds.tokenizer()
    if cell.hand:
        rows = [tuple(encode(text)["input_ids"][:32]) for text in hard_kinds.by_hand(cell.kind, cell.hand)]
    else:
        drawn = hard_kinds.texts(cell.kind, 3 * cell.records, cell.seed)
        rows = list(dict.fromkeys(tuple(encode(text)["input_ids"][:_LENGTH]) for text in drawn))[: cell.records]
    length = max(map(len, rows))
    mask = torch.tensor([[p < len(row) for p in range(length)] for row in rows])
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    labels = torch.randint(2, (len(rows),), generator=derive(cell.seed, "hard-labels"))
    return Batch(
        inputs=ids, mask=mask, labels=labels if cell.loss == "classification" else ids.masked_fill(~mask, IGNORED)
    )


def measure(cell: Cell, seconds: float) -> dict[str, Any]:
    subject = subject_of(cell)
    batch = batch_of(cell, subject)
    stages, training = (), CONDITIONS.get(cell.condition)
    if training is None:
        training, stages = LocalTraining(), catalogue.make_stages(cell.condition)
    trainer = ClientTrainer(subject=subject, training=training)
    channel = Channel(trainer=trainer, stages=stages)
    facts = {
        "subject": subject,
        "trainer": trainer,
        "stages": channel.stages,
        "batch_size": batch.size,
        "seq_len": batch.inputs.shape[1],
    }
    observation = Observation(
        update=channel.observe(batch, derive(cell.seed, "hard")), knowledge=Knowledge(facts=facts)
    )
    start = time.process_time()
    result = Span()(observation, rng=derive(cell.seed, "span"), clock=Clock(seconds))
    return {**asdict(cell), "cpu": time.process_time() - start, **judged(result, batch, cell.loss)}


def judged(result: Reconstruction, batch: Batch, loss: str) -> dict[str, Any]:
    truth = [tuple(record.tolist()) for record in batch.records()]
    proposed = [tuple(record.tolist()) for record in result.records] if result.ordered else []
    left = list(truth)
    right = []
    for record in proposed:
        right.append(record in left)
        if right[-1]:
            left.remove(record)
    short = [record[:-1] for record in left]
    bag = set(itertools.chain(*truth))
    right_tokens = tokens_right(result, [list(record) for record in truth])
    return {
        "status": result.status.name,
        "ordered": result.ordered,
        "of": len(truth),
        "right": sum(right),
        "proposed": len(proposed),
        # Under a causal loss a record without its last token is no wrong one: it claims nothing of that token.
        "short": sum(record in short for record, good in zip(proposed, right, strict=True) if not good)
        if loss == "causal-lm"
        else 0,
        "bag_recall": len(bag & set(itertools.chain(*[r.tolist() for r in result.records]))) / len(bag),
        "certificate": result.certificate,
        "message": result.message,
        "claims": [
            [float(sure), bool(good)]
            for sures, goods in zip(result.confidence, right_tokens, strict=False)
            for sure, good in zip(sures.tolist(), goods, strict=True)
        ],
        "record_claims": [
            [result.statistics[f"record_{i}"], good]
            for i, good in enumerate(right)
            if f"record_{i}" in result.statistics
        ],
        "statistics": dict(result.statistics),
    }


def cells(asked: argparse.Namespace) -> Iterator[Cell]:
    for kind, shape, loss, condition, trained_too in itertools.product(
        asked.kinds, asked.shapes, asked.losses, asked.conditions, asked.weights
    ):
        base = Cell(
            kind=kind,
            shape=shape,
            loss=loss,
            seed=0,
            condition=condition,
            trained=trained_too == "trained",
            width=128 if trained_too == "trained" else asked.width,
            records=4 if trained_too == "trained" else _RECORDS,
        )
        for hand in asked.hand:
            yield replace(base, hand=hand, records=5)
        if not asked.hand:
            yield from (replace(base, seed=seed) for seed in asked.seeds)


def print_page(asked: argparse.Namespace, recording: run.Recording) -> None:
    torch.set_num_threads(1)
    stored = []
    for cell in cells(asked):
        result = recording.cell(asked.out / f"{cell.name}.json", lambda cell=cell: measure(cell, asked.seconds))
        assert result is not None
        stored.append(result)
        if asked.verbose:
            print(_line_of(result), flush=True)
    print("| kind | shape | loss | weights | update | batches | records right | EXACT | wrong proposals | CPU s |")
    print("|" + "---|" * 10)
    for key, rows in _grouped(stored, ("kind", "shape", "loss", "trained", "condition")):
        kind, shape, loss, is_trained, condition = key
        weights = "trained" if is_trained else "random"
        print(
            f"| {kind} | {shape} | {loss} | {weights} | {condition} | {len(rows)} | {_total(rows, 'right')} of {_total(rows, 'of')} "
            f"| {sum(row['status'] == 'EXACT' for row in rows)} | {_wrong(rows)} | {_total(rows, 'cpu') / len(rows):.1f} |"
        )
    print(
        "\n| status | cells | with a wrong proposal | proposals: wrong of all | tokens claimed ≥ .99: wrong of claimed |"
    )
    print("|" + "---|" * 5)
    for (status,), rows in _grouped(stored, ("status",)):
        claims = [claim for row in rows for claim in row["claims"] if claim[0] >= 0.99]
        wrong = sum(not good for _, good in claims)
        print(
            f"| {status} | {len(rows)} | {sum(_wrong([row]) > 0 for row in rows)} | {_wrong(rows)} of {_total(rows, 'proposed')} "
            f"| {wrong} of {len(claims)} |"
        )
    _calibration("tokens", [claim for row in stored for claim in row["claims"]])
    _calibration("records", [claim for row in stored for claim in row["record_claims"]])


def _calibration(what: str, claims: Sequence[Sequence[float]]) -> None:
    print(f"\n| {what} claimed | count | mean claim | fraction right | 95 % interval |\n|---|---|---|---|---|")
    for low, high in itertools.pairwise(BINS):
        inside = [claim for claim in claims if low <= claim[0] < high]
        if inside:
            hits = sum(bool(good) for _, good in inside)
            below, above = clopper_pearson(hits, len(inside))
            mean = sum(sure for sure, _ in inside) / len(inside)
            print(
                f"| {low:g} – {min(high, 1):g} | {len(inside)} | {mean:.3f} | {hits / len(inside):.3f} | {below:.3f} – {above:.3f} |"
            )


def _line_of(row: Mapping[str, Any]) -> str:
    error = "-" if row["certificate"] is None else f"{row['certificate']:.1e}"
    return (
        f"{row['kind']:10} {row['shape']:6} {row['loss'][:6]} {row['condition']} {'trained' if row['trained'] else ''} {row['hand'] or row['seed']} "
        f"{row['status']:10} {row['right']}(+{row['short']})/{row['of']} wrong {_wrong([row])} cert {error} bag {row['bag_recall']:.2f} "
        f"cpu {row['cpu']:.1f} | {row['message'][:150]}"
    )


def _wrong(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row["proposed"] - row["right"] - row["short"] for row in rows)


def _total(rows: Iterable[Mapping[str, Any]], name: str) -> Any:
    return sum(row[name] for row in rows)


def _grouped(
    rows: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.items())


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--out", type=Path, default=Path("runs/hard"))
    reader.add_argument("--kinds", nargs="+", default=list(hard_kinds.kinds()))
    reader.add_argument("--shapes", nargs="+", default=list(SHAPES))
    reader.add_argument("--losses", nargs="+", default=list(LOSSES))
    reader.add_argument("--conditions", nargs="+", default=["gradient"], help="names of CONDITIONS, or specs of stages")
    reader.add_argument("--weights", nargs="+", default=["random"], choices=("random", "trained"))
    reader.add_argument("--hand", nargs="*", default=[], choices=("open", "held"))
    reader.add_argument("--seeds", nargs="+", type=int, default=[100, 101, 102, 103, 104, 105])
    reader.add_argument("--width", type=int, default=256)
    reader.add_argument("--seconds", type=float, default=60.0)
    reader.add_argument("--verbose", action="store_true")
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=asked.seeds) as recording:
        print_page(asked, recording)


if __name__ == "__main__":
    main()
