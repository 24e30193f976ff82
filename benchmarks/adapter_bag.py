"""How much of a batch the LoRA gradients of one step give away, from step 0 (B = 0) and with more tokens than the rank.

    python benchmarks/adapter_bag.py [--ranks 8 16] [--seeds 0 1 2] [--models gpt2 llama]

Random tokens; models 768 wide with 12 heads, 2 blocks and random weights (GPT-2's vocabulary of 50,257; 32,000 for
Llama). Recall and precision are of the distinct tokens of the batch. "Visible" leaves out the last token of every record,
which carries no loss and has no reader, so that no attack on the first block can see it.
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
from gradleak.models import LoRA, load_subject, with_lora

SETTINGS = {
    "gpt2": {"num_hidden_layers": 2},
    "llama": {"num_hidden_layers": 2, "hidden_size": 768, "num_attention_heads": 12, "vocab_size": 32000},
}


def row(model: str, rank: int, records: int, length: int, seed: int) -> str:
    subject = load_subject(f"random:{model}", loss="causal-lm", settings=SETTINGS[model], seed=seed)
    subject = with_lora(subject, LoRA(rank=rank), seed=seed)
    ids = torch.randint(subject.anatomy.vocab_size, (records, length), generator=derive(seed, "ids"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed))
    facts = {"subject": subject, "batch_size": records, "seq_len": length}
    start = time.process_time()
    found = AdapterBag()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(seed, "attack"))
    seconds = time.process_time() - start
    got = found.records[0] if found.records else ids.new_zeros(0)
    recall, visible = (float(torch.isin(true, got).double().mean()) for true in (ids.unique(), ids[:, :-1].unique()))
    precision = float(torch.isin(got, ids).double().mean()) if got.numel() else 0.0
    return (
        f"| {model} | {rank} | {records}×{length} | {seed} | {recall:.2f} | {visible:.2f} | {precision:.2f} "
        f"| {int(found.statistics['rounds'])} | {seconds:.0f} |"
    )


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--models", nargs="*", default=["gpt2", "llama"])
    reader.add_argument("--ranks", nargs="*", type=int, default=[8, 16])
    reader.add_argument("--records", type=int, default=8)
    reader.add_argument("--length", type=int, default=16)
    reader.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    asked = reader.parse_args()
    torch.set_num_threads(1)
    print("| model | rank | batch | seed | recall | visible recall | precision | rounds | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in asked.models:
        for rank in asked.ranks:
            for seed in asked.seeds:
                print(row(model, rank, asked.records, asked.length, seed), flush=True)


if __name__ == "__main__":
    main()
