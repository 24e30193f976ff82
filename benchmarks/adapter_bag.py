"""How much of a batch the LoRA gradients of one step give away, from step 0 (B = 0) and with more tokens than the rank.

    python benchmarks/adapter_bag.py [--ranks 8 16] [--seeds 0 1 2] [--models gpt2 llama minilm] [--blocks 12] [--b-std 0]

Random tokens; gpt2 and llama are 768 wide with 12 heads, ``--blocks`` blocks and random weights (GPT-2's vocabulary of
50,257; 32,000 for Llama), under a causal language-model loss; minilm has its own weights and a classifier. Adapters sit on
queries, keys and values. Recall and precision are of the distinct tokens of the batch. "Visible" leaves out the last token
of every record where the loss is that of a language model: it carries no loss and has no reader, so that no attack on the
first block can see it. A b_std above zero is an adapter that was trained already, whose dL/dA is not zero.
"""

from __future__ import annotations

import argparse
import time

import torch

from gradleak.attacks.adapter_bag import AdapterBag
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge
from gradleak.core.observation import Observation
from gradleak.core.rng import derive
from gradleak.mechanics.training import ClientTrainer, LocalTraining
from gradleak.models import LoRA, Subject, load_subject, with_lora

LLAMA = {"hidden_size": 768, "num_attention_heads": 12, "vocab_size": 32000}


def subject_of(model: str, blocks: int, seed: int) -> Subject:
    if model == "minilm":
        return load_subject("minilm", loss="classification", seed=seed)
    settings = {"num_hidden_layers": blocks, **(LLAMA if model == "llama" else {})}
    return load_subject(f"random:{model}", loss="causal-lm", settings=settings, seed=seed)


def row(model: str, lora: LoRA, blocks: int, records: int, length: int, seed: int) -> str:
    subject = with_lora(subject_of(model, blocks, seed), lora, seed=seed)
    ids = torch.randint(subject.anatomy.vocab_size, (records, length), generator=derive(seed, "ids"))
    language = subject.loss == "causal-lm"
    labels = ids if language else torch.arange(records) % subject.classes
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed))
    facts = {"subject": subject, "batch_size": records, "seq_len": length}
    start = time.process_time()
    found = AdapterBag()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(seed, "attack"))
    seconds = time.process_time() - start
    got = found.records[0] if found.records else ids.new_zeros(0)
    seen = ids[:, :-1] if language else ids
    recall, visible = (float(torch.isin(true, got).double().mean()) for true in (ids.unique(), seen.unique()))
    precision = float(torch.isin(got, ids).double().mean()) if got.numel() else 0.0
    return (
        f"| {model} | {len(subject.anatomy.blocks)} | {lora.rank} | {lora.b_std:g} | {records}×{length} | {seed} | {recall:.2f} | {visible:.2f} | {precision:.2f} "
        f"| {int(found.statistics['rounds'])} | {seconds:.0f} |"
    )


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--models", nargs="*", default=["gpt2", "llama", "minilm"])
    reader.add_argument("--ranks", nargs="*", type=int, default=[8, 16])
    reader.add_argument("--blocks", type=int, default=12)
    reader.add_argument("--b-std", type=float, default=0.0)
    reader.add_argument("--records", type=int, default=8)
    reader.add_argument("--length", type=int, default=16)
    reader.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    asked = reader.parse_args()
    torch.set_num_threads(1)
    print("| model | blocks | rank | b_std | batch | seed | recall | visible recall | precision | rounds | CPU s |")
    print("|---" * 11 + "|")
    for model in asked.models:
        for rank in asked.ranks:
            for seed in asked.seeds:
                lora = LoRA(rank=rank, b_std=asked.b_std)
                print(row(model, lora, asked.blocks, asked.records, asked.length, seed), flush=True)


if __name__ == "__main__":
    main()
