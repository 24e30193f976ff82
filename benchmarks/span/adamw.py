"""What one AdamW step gives away about the tokens: almost only signs of the gradient are shared.

    python -m benchmarks.span.adamw [--seeds 0 1 2] [--models gpt2 minilm] [--batches 1x16 4x16 8x16]

Random tokens, so that no prior helps and chance is k / vocabulary. GPT-2's width and vocabulary with 2 blocks, random
weights, causal-lm; MiniLM's own weights, classification. The first AdamW step shares −lr · u with u = g / (|g| + eps),
after the decay, a known offset, is taken off. With G = Σᵢ dᵢ xᵢᵀ stacked from the first attention's maps, and x(v, p)
the part of token v at position p that the first normalization lets through, a token scores

    score(v) = max over p of  ‖M x(v, p)‖² / ‖x(v, p)‖²,  standardized over the vocabulary at every p,

where M is one of: ``gradient`` G itself (what an SGD client shares), ``signs`` sign(u), ``inverted`` eps · u / (1 − |u|),
which undoes the step where |u| can be told from 1 in float32. Recall is the share of the batch's k distinct tokens among
the k best. ``off`` is ‖inverted − G‖ / ‖G‖. ``rows`` reads the token embedding instead: tokens whose row moved by more than
the decay; not readable where the head is tied to it.
``span`` undoes the step itself, column by column in units of the error that float32 leaves (`span/reading/adamw_step.py`), and
searches records: exact ones, of all, and how many proposed records are wrong; "n/a": calls that ended in NOT_APPLICABLE.
The interval is the exact one of the pooled tokens (tokens of one batch are not independent: read it as a lower width).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.common import run
from gradleak.attacks.sign_span import rank_tokens
from gradleak.attacks.span import Span
from gradleak.attacks.token_support import TokenSupport
from gradleak.core.attack import Clock, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.harness.judging.intervals import clopper_pearson
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.first_input import read_first_input
from gradleak.models import Subject, load_subject

LR, EPS = 1e-3, 1e-8
VARIANTS = ("gradient", "signs", "inverted")
SHARED = LocalTraining(share="delta", optimizer="adamw", lr=LR)


def subject_of(model: str, seed: int) -> Subject:
    if model == "minilm":
        return load_subject("minilm", loss="classification", seed=seed)
    return load_subject(f"random:{model}", loss="causal-lm", settings={"num_hidden_layers": 2}, seed=seed)


def stacked(subject: Subject, tensors: dict[str, Tensor]) -> Tensor:
    maps = subject.anatomy.blocks[0].attention_inputs
    return torch.cat([m.as_matrix(tensors[m.weight]) for m in maps])


def cell(model: str, records: int, length: int, seed: int) -> dict[str, float]:
    subject = subject_of(model, seed)
    ids = torch.randint(subject.anatomy.vocab_size, (records, length), generator=derive(seed, "ids"))
    labels = ids if subject.loss.name == "causal-lm" else torch.arange(records) % 2
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    plain = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed))
    trainer = ClientTrainer(subject=subject, training=SHARED)
    delta = trainer.update(batch, derive(seed))
    names = {m.weight for m in subject.anatomy.blocks[0].attention_inputs}
    u = stacked(subject, {name: (delta[name] - trainer.idle(name)) / -LR for name in names})
    gradient = stacked(subject, {name: plain[name] for name in names})
    # Half a unit in the last place of weights of this size, in units of lr: what 1 − |u| can be told from.
    weights = stacked(subject, {name: subject.module.get_parameter(name).detach() for name in names})
    floor = torch.finfo(torch.float32).eps * weights.abs() / (2 * LR) + torch.finfo(torch.float32).eps
    inverted = EPS * u / torch.maximum(1 - u.abs(), floor)
    law = read_first_input(subject, subject.anatomy.blocks[0].attention_inputs[0].module, positions=length)
    assert law is not None
    truth, found = ids.unique(), {"k": float(ids.unique().numel()), "vocab": float(subject.anatomy.vocab_size)}
    for name, matrix in zip(VARIANTS, (gradient, u.sign(), inverted), strict=True):
        best = rank_tokens(law, matrix)[0][: truth.numel()]
        found[name] = float(torch.isin(truth, best).sum())
    facts = {"subject": subject, "trainer": trainer, "batch_size": records, "seq_len": length, "stages": ()}
    found |= records_of_span(delta, subject, trainer, batch, seed)
    rows = TokenSupport()(Observation(update=delta, knowledge=Knowledge(facts=facts)), rng=derive(seed))
    got = rows.records[0] if rows.records else truth.new_zeros(0)
    found["rows"] = float(torch.isin(truth, got).sum())
    found["told"] = float(got.numel())
    found["off"] = float((inverted - gradient).norm() / gradient.norm())
    return found


def records_of_span(
    delta: Update, subject: Subject, trainer: ClientTrainer, batch: Batch, seed: int
) -> dict[str, float]:
    records, length = batch.inputs.shape
    facts = {"subject": subject, "trainer": trainer, "batch_size": records, "seq_len": length}
    seen = Span()(
        Observation(update=delta, knowledge=Knowledge(facts=facts)), rng=derive(seed, "span"), clock=Clock(120.0)
    )
    truth = {tuple(r.tolist()) for r in (batch.inputs[:, :-1] if subject.loss.name == "causal-lm" else batch.inputs)}
    got = {tuple(r.tolist()) for r in seen.records} if seen.ordered else set()
    silent = seen.status is Status.NOT_APPLICABLE
    return {"exact": len(truth & got), "wrong": len(got - truth), "records": len(truth), "silent": float(silent)}


def share(hits: float, of: float) -> str:
    low, high = clopper_pearson(hits, int(of))
    return f"{hits / of:.2f} [{low:.2f}, {high:.2f}]"


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(
        "| model | batch | seeds | gradient | signs | inverted | span: exact records | wrong | n/a | off, per seed | rows: recall, precision | chance | CPU s |"
    )
    print("|---" * 13 + "|")
    for model in asked.models:
        for text in asked.batches:
            records, length = map(int, text.split("x"))
            start = time.process_time()
            cells = [cell(model, records, length, seed) for seed in asked.seeds]
            total = {key: sum(one[key] for one in cells) for key in cells[0]}
            recalls = " | ".join(share(total[name], total["k"]) for name in VARIANTS)
            off = ", ".join(f"{one['off']:.2f}" for one in cells)
            rows = f"{total['rows'] / total['k']:.2f}, {total['rows'] / max(total['told'], 1):.2f}"
            chance = total["k"] / len(cells) / cells[0]["vocab"]
            exact = share(total["exact"], total["records"])
            span = f"{exact} | {total['wrong']:.0f} | {total['silent']:.0f}/{len(cells)}"
            seconds = time.process_time() - start
            print(
                f"| {model} | {records}×{length} | {len(cells)} | {recalls} | {span} | {off} | {rows} | {chance:.4f} | {seconds:.0f} |",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--models", nargs="*", default=["gpt2", "minilm"])
    reader.add_argument("--batches", nargs="*", default=["1x16", "4x16", "8x16"])
    reader.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=asked.seeds):
        print_page(asked)


if __name__ == "__main__":
    main()
