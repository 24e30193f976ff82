"""Structures of decoders and situations of training, each once through the span attack: what it finds and what it says.

    python -m benchmarks.span.situations                  # every row, three seeds each; resumes from runs/span_situations
    python -m benchmarks.span.situations --groups structure
    python -m benchmarks.span.situations --table          # prints the tables again

Eight records of at most 16 random tokens, of unequal lengths; seeds 0 to 2. Group ``structure`` draws a small shape for every
seed; group ``situation`` uses two blocks of GPT-2 small's width, or of a Llama of width 256, and 8,000 words; group ``fedavg`` all twelve
blocks of GPT-2 small, its vocabulary and 16 records. The attack is told the client's settings, batch size and length, and certifies what it can:
the CPU time includes the certificate. A record under a language-model loss counts without its last token, or with it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import run
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.harness.judging.intervals import clopper_pearson
from gradleak.harness.request.catalogue import Catalogue
from gradleak.harness.request.shares import parse_share
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.models import Anatomy, Subject, load_subject

_SEEDS = 3
_BUDGET_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a table.

    Attributes:
        settings: of the model; a random shape is drawn beside them in group ``structure``.
        only: which tensors are shared: all, or a key of ``_PARTS``.
        layout: padding on the ``right`` or the ``left``, or ``bos``: every record begins with one and the same token.
        weights: number format of the model.
    """

    group: str
    what: str
    kind: str
    loss: str = "classification"
    settings: tuple[tuple[str, Any], ...] = ()
    share: str = "gradient"
    stage: str = "none"
    only: str = "all"
    layout: str = "right"
    weights: str = "float32"
    records: int = 8
    length: int = 16

    @property
    def name(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in f"{self.group} {self.what}")


_PARTS = {
    "queries": lambda a: (*a.blocks[0].attention_inputs[:1], a.blocks[0].attention_output, *a.blocks[0].mlp_inputs),
    "queries of every block": lambda a: tuple(b.attention_inputs[0] for b in a.blocks),
    "queries and keys of every block": lambda a: tuple(m for b in a.blocks for m in b.attention_inputs[:2]),
    "attention": lambda a: tuple(m for b in a.blocks for m in (*b.attention_inputs, b.attention_output)),
    "feed-forward": lambda a: tuple(m for b in a.blocks for m in b.mlp_inputs),
    "the last block": lambda a: a.blocks[-1].maps(),
}
_STRUCTURES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("learned positions", "gpt2", {}),
    ("learned positions with an offset", "opt", {}),
    ("learned positions, one key for all heads", "gpt_bigcode", {}),
    ("partial rotation, parallel blocks", "gpt_neox", {}),
    ("interleaved rotation, parallel blocks", "gptj", {}),
    ("parallel blocks, one norm", "phi", {}),
    ("one key for all heads, parallel blocks", "falcon", {}),
    ("ALiBi", "mpt", {}),
    ("ALiBi, norm of the embeddings", "bloom", {}),
    ("grouped keys, RMSNorm", "llama", {}),
    ("tied head", "llama", {"tie_word_embeddings": True}),
    ("a window of 8", "mistral", {"sliding_window": 8, "num_hidden_layers": 4}),
    ("biases on queries and keys", "qwen2", {}),
    ("norms on queries and keys", "qwen3", {}),
    ("fused gate and up", "phi3", {}),
    ("scaled embeddings", "gemma", {}),
    ("capped scores, alternating windows of 8", "gemma2", {"sliding_window": 8}),
    ("windows of 8, norms on queries and keys", "gemma3_text", {"sliding_window": 8, "num_hidden_layers": 4}),
    ("norms behind the layers", "olmo2", {}),
    ("LayerNorm, biases, window", "starcoder2", {}),
    ("experts", "mixtral", {}),
    ("experts, norms on queries and keys", "qwen3_moe", {"num_experts": 8, "moe_intermediate_size": 64}),
)


def rows() -> list[Row]:
    found = [
        Row(group="structure", what=f"{what} ({kind})", kind=kind, settings=tuple(settings.items()))
        for what, kind, settings in _STRUCTURES
    ]
    situations: list[tuple[str, dict[str, Any]]] = [
        ("plain", {}),
        ("padding in front", {"layout": "left"}),
        ("one first token for all", {"layout": "bos"}),
        ("bf16 model", {"weights": "bfloat16"}),
        ("fp16 model", {"weights": "float16"}),
        *((f"top {100 - 100 * f:g} %", {"stage": f"prune(fraction={f})"}) for f in (0.1, 0.5, 0.9, 0.99)),
        ("int8", {"stage": "quantize(dtype=int8)"}),
        ("gradient accumulation", {"share": "gradient(micro_batch=2)"}),
        ("dropout .1", {"share": "gradient(dropout=true)"}),
        ("clipping by example", {"stage": "dpsgd(noise_multiplier=0, max_norm=0.1)"}),
        ("clipping by example, noise 1e-5", {"stage": "dpsgd(noise_multiplier=0.00001, max_norm=0.1)"}),
        ("frozen embeddings", {"stage": "frozen_embeddings"}),
        ("5 epochs of mini-batches of 2", {"share": "delta(epochs=5, mini_batch=2, lr=0.0005)"}),
        ("5 steps, momentum .9", {"share": "delta(steps=5, momentum=0.9, lr=0.0005)"}),
        ("AdamW, 1 step", {"share": "delta(steps=1, optimizer=adamw, lr=0.0001)"}),
        ("AdamW, 5 steps", {"share": "delta(steps=5, optimizer=adamw, lr=0.0001)"}),
        *((f"only {part}", {"only": part}) for part in ("attention", "feed-forward", "the last block")),
    ]
    wide = (("num_hidden_layers", 2), ("vocab_size", 8_000))
    for kind, settings in (("gpt2", wide), ("llama", (("num_hidden_layers", 2), ("vocab_size", 8_000)))):
        for loss in ("classification", "causal-lm"):
            base = Row(group="situation", what=f"{kind}, {loss}", kind=kind, loss=loss, settings=settings)
            found += [replace(base, what=f"{base.what}: {what}", **change) for what, change in situations]
    split = ("queries", "queries of every block", "queries and keys of every block")
    found += [
        Row(group="situation", what=f"llama, classification: only {part}", kind="llama", only=part) for part in split
    ]
    found += [
        Row(group="fedavg", what=f"E = {e}", kind="gpt2", share=f"delta(steps={e}, lr=0.0005)", records=16)
        for e in (1, 5, 10, 20)
    ]
    return found


def subject_for(row: Row, seed: int) -> Subject:
    settings = dict(row.settings)
    if row.group == "structure":
        rng = derive(seed, "shape", len(row.kind))
        heads, half, depth, words = (
            int(torch.randint(low, high, (), generator=rng)) for low, high in ((1, 4), (0, 17), (2, 4), (1500, 6000))
        )
        head_dim = 4 * ((192 // 2**heads) // 4 + half)
        drawn = {"num_attention_heads": 2**heads, "hidden_size": 2**heads * head_dim, "num_hidden_layers": depth}
        settings = {**drawn, "vocab_size": words, **settings}
    subject = load_subject(f"random:{row.kind}", loss=row.loss, settings=settings, seed=seed)
    if row.weights == "float32":
        return subject
    return replace(subject, module=copy.deepcopy(subject.module).to(getattr(torch, row.weights)))


def batch_for(row: Row, subject: Subject, seed: int) -> Batch:
    rng = derive(seed, "situations", row.records, row.length)
    lengths = torch.randint(row.length // 2, row.length + 1, (row.records, 1), generator=rng)
    lengths[0] = row.length
    places = torch.arange(row.length)
    mask = places >= row.length - lengths if row.layout == "left" else places < lengths
    ids = torch.randint(5, subject.anatomy.vocab_size, mask.shape, generator=rng)
    if row.layout == "bos":
        ids[:, 0] = 4
    ids = ids.masked_fill(~mask, 0)
    classes = torch.randint(subject.classes, (row.records,), generator=rng)
    return Batch(
        inputs=ids, mask=mask, labels=classes if row.loss == "classification" else ids.masked_fill(~mask, IGNORED)
    )


def _shared(update: Update, only: str, anatomy: Anatomy) -> Update:
    names = {each.weight for each in _PARTS[only](anatomy)} if only in _PARTS else set(update)
    return Update({name: tensor for name, tensor in update.items() if name in names})


def measure(row: Row, seed: int, *, budget: float = _BUDGET_SECONDS) -> dict[str, Any]:
    subject = subject_for(row, seed)
    batch = batch_for(row, subject, seed)
    trainer = ClientTrainer(subject=subject, training=parse_share(row.share))
    channel = Channel(trainer=trainer, stages=Catalogue().make_stages(row.stage))
    update = _shared(channel.observe(batch, derive(seed, "channel")), row.only, subject.anatomy)
    facts = {
        "subject": channel.deployed().subject,
        "trainer": channel.deployed(),
        "stages": channel.stages,
        "batch_size": batch.size,
        "seq_len": row.length,
    }
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    start = time.process_time()
    found = Span()(observation, rng=derive(seed, "attack"), clock=Clock(budget))
    return {
        "seed": seed,
        "cpu": time.process_time() - start,
        **score(found, batch, row.loss),
        "status": found.status.name,
        "message": found.message,
    }


def score(found: Reconstruction, batch: Batch, loss: str) -> dict[str, Any]:
    whole = [tuple(record.tolist()) for record in batch.records()]
    asked = [record[:-1] if loss == "causal-lm" else record for record in whole]
    guesses = {tuple(record.tolist()) for record in found.records} if found.ordered else set()
    bag, seen = {t for r in asked for t in r}, {t for record in found.records for t in record.tolist()}
    return {
        "records": len(asked),
        "exact": sum(bool({a, w} & guesses) for a, w in zip(asked, whole, strict=True)),
        "wrong": len(guesses - {*asked, *whole}),
        "bag_recall": len(bag & seen) / len(bag),
    }


_HEAD = "| what | records exact [95 %] | wrong | bag recall (least) | CPU s | status | what it says (seed 0) |"


def table(group: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [f"\n### {group}\n", _HEAD, "|---" * (_HEAD.count("|") - 1) + "|"]
    for what, found in results.items():
        exact, records = sum(r["exact"] for r in found), sum(r["records"] for r in found)
        low, high = clopper_pearson(exact, records)
        statuses = ", ".join(f"{name} {n}" for name, n in Counter(r["status"] for r in found).items())
        lines.append(
            f"| {what} | {exact}/{records} [{low:.2f}, {high:.2f}] | {sum(r['wrong'] for r in found)} "
            f"| {min(r['bag_recall'] for r in found):.2f} | {median(r['cpu'] for r in found):.2f} | {statuses} "
            f"| {found[0]['message']} |"
        )
    return "\n".join(lines)


def print_page(arguments: argparse.Namespace, recording: run.Recording) -> None:
    for group in arguments.groups.split(","):
        results: dict[str, list[dict[str, Any]]] = {}
        for row in (each for each in rows() if each.group == group):
            for seed in range(_SEEDS):
                work = None if arguments.table else partial(measure, row, seed)
                result = recording.cell(arguments.out / f"{row.name}-{seed}.json", work)
                if result is not None:
                    results.setdefault(row.what, []).append(result)
        print(table(group, results), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/span_situations"))
    parser.add_argument("--groups", default="structure,situation,fedavg")
    parser.add_argument("--table", action="store_true", help="print the tables and measure nothing")
    arguments = run.parse(parser, argv)
    with run.record(__file__, arguments, seeds=range(_SEEDS)) as recording:
        print_page(arguments, recording)


if __name__ == "__main__":
    main()
