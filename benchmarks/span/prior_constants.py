"""What the constants of the search with a language prior do (`span/with_prior/posterior.py`), one changed at a time.

    python -m benchmarks.span.prior_constants

A byte-level GPT-2 of width 64, batches of 2 pieces of 8 bytes of the shipped messages, language-model loss, noise .3 and 1, prior `public`, seeds 60 to 71. **right**: bytes in their
place, of those of batches that the update leaves undecided. **posterior**: sum of log evidence and log prior over these batches, less that of the defaults, in nats.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from importlib import resources

import torch

from benchmarks.common import run
from gradleak.attacks.span import Span
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.span.with_prior import posterior as span_posterior
from gradleak.span.with_prior.attribution import agreeing

SIZES = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "vocab_size": 260,
    "initializer_range": 0.05,
}
RECORDS, LENGTH, SEEDS, NOISES = 2, 8, range(60, 72), (0.3, 1.0)
CHANGED = (
    ("_BEAM", (4, 16)),
    ("_CLOSER", (16, 64)),
    ("_FROM_PRIOR", (2, 8)),
)


def make_batch(texts: list[bytes], seed: int) -> Batch:
    rng = derive(seed, "messages")
    chosen = [texts[i] for i in torch.randperm(len(texts), generator=rng)[:RECORDS].tolist()]
    starts = [int(torch.randint(len(text) - LENGTH, (1,), generator=rng)) for text in chosen]
    ids = torch.tensor([list(text[s : s + LENGTH]) for text, s in zip(chosen, starts, strict=True)])
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)


def measured(subject: Subject, batches: dict[int, Batch]) -> tuple[int, int, float, float]:
    """Right bytes, bytes, posterior and processor seconds."""
    right, count, posterior, began = 0, 0, 0.0, time.process_time()
    for seed, batch in batches.items():
        update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "training"))
        for noise in NOISES:
            released = Gaussian(relative_std=noise).apply(update, derive(seed, "noise", noise))
            facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
            observation = Observation(update=released, knowledge=Knowledge(facts=facts))
            found = Span(prior="public")(observation, rng=derive(seed, "attack"))
            if "tokens_due_to_prior" in found.statistics:
                right += agreeing(found.records, list(batch.records()))
                count += RECORDS * LENGTH
                posterior += found.statistics["log_evidence"] + found.statistics["log_prior"]
    return right, count, posterior, time.process_time() - began


def print_page() -> None:
    torch.set_num_threads(1)
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SIZES)
    with resources.files("gradleak").joinpath("data", "messages.csv").open(encoding="utf-8") as file:
        texts = [row["text"].encode("ascii", "ignore") for row in csv.DictReader(file)]
    batches = {seed: make_batch(texts, seed) for seed in SEEDS}
    usual = measured(subject, batches)
    print("\n## Constants of the search\n\nPrinted by `python -m benchmarks.span.prior_constants`.\n")
    print("| constant | value | right | posterior | CPU s |\n|---|---|---|---|---|")
    print(f"| as they are | | {usual[0]} of {usual[1]} | 0.0 | {usual[3]:.0f} |", flush=True)
    for name, values in CHANGED:
        default = getattr(span_posterior, name)
        for value in values:
            setattr(span_posterior, name, value)
            right, count, posterior, seconds = measured(subject, batches)
            print(
                f"| {name} | {value} | {right} of {count} | {posterior - usual[2]:+.1f} | {seconds:.0f} |", flush=True
            )
        setattr(span_posterior, name, default)


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=SEEDS):
        print_page()


if __name__ == "__main__":
    main()
