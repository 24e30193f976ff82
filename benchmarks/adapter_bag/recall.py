"""How much of a batch the LoRA gradients of one step give away, from step 0 (B = 0) and with more tokens than the rank.

    python -m benchmarks.adapter_bag.recall [--models gpt2 llama bert minilm] [--ranks 16] [--targets attention] [--seeds 20 21 22 23 24]
        [--blocks 12] [--b-std 0] [--each]

Random tokens; gpt2, llama and bert are 768 wide with 12 heads, ``--blocks`` blocks and random weights (vocabularies of 50,257,
32,000 and 30,522); gpt2 and llama under a causal language-model loss, bert and minilm (its own weights) under a classifier's.
Adapters sit on queries, keys and values (attention), on queries and values (query_value), or on all linear maps (all).

One line per setting: means over the seeds ± half the 95 % interval (Student); ``--each`` prints every seed. Recall, and precision
of what is claimed, are of the distinct tokens of the batch. "Visible" leaves out the last token of every record where the loss is
that of a language model: it carries no loss and has no reader, so that no attack on the first block can see it. "Best" is
the recall of as many tokens as the batch may hold, most likely first, whatever their probability. A b_std above zero is an
adapter that was trained already, whose dL/dA is not zero.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence

import torch
from scipy.stats import t as student

from benchmarks.common import run
from gradleak.attacks.adapter_bag import AdapterBag
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import LoRA, Subject, load_subject, with_lora

LLAMA = {"hidden_size": 768, "num_attention_heads": 12, "vocab_size": 32000}
CLASSIFIERS = ("minilm", "bert")
TARGETS = ("attention", "query_value", "all")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One line of the table."""

    model: str
    lora: LoRA
    blocks: int
    records: int
    length: int

    def subject(self, seed: int) -> Subject:
        loss = "classification" if self.model in CLASSIFIERS else "causal-lm"
        settings = {"num_hidden_layers": self.blocks, **(LLAMA if self.model == "llama" else {})}
        plain = (
            load_subject("minilm", loss=loss, seed=seed)
            if self.model == "minilm"
            else load_subject(f"random:{self.model}", loss=loss, settings=settings, seed=seed)
        )
        return with_lora(plain, self.lora, seed=seed)

    def words(self) -> str:
        lora = self.lora
        return f"| {self.model} | {lora.targets} | {lora.rank} | {lora.b_std:g} | {self.records}×{self.length} "


def measured(setting: Setting, seed: int) -> list[float]:
    """Recall, visible recall, precision, claimed tokens, best recall, CPU seconds."""
    subject = setting.subject(seed)
    ids = torch.randint(subject.anatomy.vocab_size, (setting.records, setting.length), generator=derive(seed, "ids"))
    language = subject.loss.name == "causal-lm"
    labels = ids if language else torch.arange(setting.records) % subject.classes
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed))
    facts = {"subject": subject, "batch_size": setting.records, "seq_len": setting.length}
    start = time.process_time()
    # Without a threshold the answer holds as many tokens as the batch may, most likely first.
    found = AdapterBag(confidence=0.0)(
        Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(seed, "attack")
    )
    seconds = time.process_time() - start
    best = found.records[0] if found.records else ids.new_zeros(0)
    sure = best[found.confidence[0] >= AdapterBag().confidence] if found.records else best
    seen = ids[:, :-1] if language else ids
    recall, visible = (float(torch.isin(true, sure).double().mean()) for true in (ids.unique(), seen.unique()))
    precision = float(torch.isin(sure, ids).double().mean()) if sure.numel() else 0.0
    most = float(torch.isin(ids.unique(), best).double().mean())
    return [recall, visible, precision, float(len(sure)), most, seconds]


def line(setting: Setting, rows: list[list[float]], seeds: str) -> str:
    """Means with half the 95 % interval of the mean."""
    values = torch.tensor(rows, dtype=torch.float64)
    cells = [f"{float(v):.2f}" for v in values.mean(0)[:5]]
    if len(rows) > 1:
        half = values.std(0) * float(student.ppf(0.975, len(rows) - 1)) / len(rows) ** 0.5
        cells = [f"{cell} ± {float(h):.2f}" for cell, h in zip(cells, half[:5], strict=True)]
    cells[3] = f"{float(values[:, 3].mean()):.0f}"
    return setting.words() + f"| {seeds} | " + " | ".join(cells) + f" | {float(values[:, 5].mean()):.0f} |"


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print("| model | adapters | rank | b_std | batch | seeds | recall | visible | precision | claimed | best | CPU s |")
    print("|---" * 12 + "|")
    for model in asked.models:
        for targets in asked.targets:
            for rank in asked.ranks:
                lora = LoRA(rank=rank, targets=targets, b_std=asked.b_std)
                setting = Setting(
                    model=model, lora=lora, blocks=asked.blocks, records=asked.records, length=asked.length
                )
                rows: list[list[float]] = []
                for seed in asked.seeds:
                    rows.append(measured(setting, seed))
                    if asked.each:
                        print(line(setting, rows[-1:], str(seed)), flush=True)
                print(line(setting, rows, f"{len(rows)}"), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--models", nargs="*", default=["gpt2", "llama", "bert", "minilm"])
    reader.add_argument("--ranks", nargs="*", type=int, default=[16])
    reader.add_argument("--targets", nargs="*", choices=TARGETS, default=["attention"])
    reader.add_argument("--blocks", type=int, default=12)
    reader.add_argument("--b-std", type=float, default=0.0)
    reader.add_argument("--records", type=int, default=8)
    reader.add_argument("--length", type=int, default=16)
    reader.add_argument("--seeds", nargs="*", type=int, default=[20, 21, 22, 23, 24])
    reader.add_argument("--each", action="store_true")
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=asked.seeds):
        print_page(asked)


if __name__ == "__main__":
    main()
