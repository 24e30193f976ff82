"""Exact records from the LoRA gradients of one step: how many, by rank, batch and whether B has moved.

    python -m benchmarks.span.adapters [--models gpt2 llama minilm] [--ranks 8 16 32 64] [--records 1 2 4 8] [--seeds 5]

Random tokens, records of 16; adapters on queries, keys and values of every block. gpt2 and llama are 768 wide with 12 heads, 4
blocks and random weights (vocabularies of 50,257 and 32,000) under a causal language-model loss, which never shows a
record's last token; minilm has its own weights and a classifier; the embeddings are frozen. b_std = 0 is the usual start of an
adapter. "room" is the number of inputs that the theory allows (docs/span.md: fewer than r, or Σ r once B has moved), "inputs"
the number that a loss reads. Exact are whole records in order; wrong are proposed ones that are not in the batch; the bag is
that of all proposed tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.common import run
from gradleak.attacks.span import Span
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import LoRA, Subject, load_subject, with_lora

LENGTH = 16
LLAMA = {"hidden_size": 768, "num_attention_heads": 12, "vocab_size": 32000}


def subject_of(model: str, lora: LoRA, seed: int) -> Subject:
    if model == "minilm":
        subject = load_subject("minilm", loss="classification", seed=seed)
    else:
        settings = {"num_hidden_layers": 4, **(LLAMA if model == "llama" else {})}
        subject = load_subject(f"random:{model}", loss="causal-lm", settings=settings, seed=seed)
    return with_lora(subject, lora, seed=seed)


def row(model: str, lora: LoRA, records: int, seed: int) -> str:
    subject = subject_of(model, lora, seed)
    ids = torch.randint(subject.anatomy.vocab_size, (records, LENGTH), generator=derive(seed, "ids"))
    language = subject.loss.name == "causal-lm"
    labels = ids if language else torch.arange(records) % subject.classes
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    facts = {"subject": subject, "trainer": trainer, "batch_size": records, "seq_len": LENGTH}
    observation = Observation(update=trainer.update(batch, derive(seed)), knowledge=Knowledge(facts=facts))
    start = time.process_time()
    found = Span()(observation, rng=derive(seed, "attack"))
    seconds = time.process_time() - start
    seen = LENGTH - language
    adapters = len(subject.anatomy.adapters_of(subject.anatomy.blocks[0].attention_inputs))
    room = lora.rank * adapters if lora.b_std else lora.rank - 1
    got, true = ({tuple(r[:seen].tolist()) for r in rows} for rows in (found.records if found.ordered else (), ids))
    tokens = torch.cat(found.records) if found.records else ids.new_zeros(0)
    bag = float(torch.isin(ids[:, :seen].unique(), tokens).double().mean())
    return (
        f"| {model} | {lora.rank} | {lora.b_std:g} | {records}×{LENGTH} | {records * seen} | {room} | {len(got & true)}/{records} "
        f"| {len(got - true)} | {bag:.2f} | {found.status.name} | {seconds:.1f} |"
    )


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print("| model | rank | b_std | batch | inputs | room | exact | wrong | bag | status | CPU s |")
    print("|---" * 11 + "|")
    for model in asked.models:
        for b_std in (0.0, 0.02):
            for rank in asked.ranks:
                for records in asked.records:
                    for seed in asked.seeds:
                        print(row(model, LoRA(rank=rank, b_std=b_std), records, seed), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--models", nargs="*", default=["gpt2", "llama", "minilm"])
    reader.add_argument("--ranks", nargs="*", type=int, default=[8, 16, 32, 64])
    reader.add_argument("--records", nargs="*", type=int, default=[1, 2, 4, 8])
    reader.add_argument("--seeds", nargs="*", type=int, default=[5])
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=asked.seeds):
        print_page(asked)


if __name__ == "__main__":
    main()
