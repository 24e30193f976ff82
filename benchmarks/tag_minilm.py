"""TAG on MiniLM: one sentence of ten tokens, 1,000 iterations, as the authors of LAMP run it as a baseline.

    python benchmarks/tag_minilm.py [--threads 1] [--seeds 3]

Prints CPU seconds (user + system), words found and tokens in their place for every seed. The figures to hold beside it
are those of the LAMP authors' code in the reference notes: 380 CPU-seconds, 7 of 8 words, 3 of 10 tokens in place.
"""

from __future__ import annotations

import argparse
import time

import torch

from gradleak.attacks.tag import TAG
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge
from gradleak.core.observation import Observation
from gradleak.core.rng import derive
from gradleak.mechanics.framing import Framing
from gradleak.mechanics.training import ClientTrainer, LocalTraining
from gradleak.models import load_subject

SENTENCE = "the patient was admitted with chest pain ."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    subject = load_subject("minilm", loss="classification", classes=2)
    assert subject.tokenizer is not None
    ids, mask = subject.tokenizer.encode([SENTENCE], 32)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(Batch(inputs=ids, mask=mask, labels=torch.tensor([1])), derive(0, "training"))
    framing = Framing.of(subject.tokenizer)
    facts = {
        "subject": subject,
        "trainer": trainer,
        "batch_size": 1,
        "seq_len": ids.shape[1],
        "stages": (),
        "framing": framing,
    }
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    attack = TAG(iterations=arguments.iterations, patience=arguments.iterations)
    print(
        "| seed | CPU s | wall s | iterations | words found | tokens in place | objective |\n|---|---|---|---|---|---|---|"
    )
    for seed in range(arguments.seeds):
        wall, cpu = time.perf_counter(), time.process_time()
        found = attack(observation, rng=derive(seed, "attack"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        guess, truth = found.records[0].tolist(), ids[0].tolist()
        words = [token for token in truth if token not in subject.tokenizer.special_ids]
        bag = sum(min(words.count(token), guess.count(token)) for token in set(words))
        placed = sum(a == b for a, b in zip(truth, guess, strict=False))
        done = int(found.statistics["iterations"])
        print(
            f"| {seed} | {cpu:.0f} | {wall:.0f} | {done} | {bag}/{len(words)} | {placed}/{len(truth)} | {found.objective:.3g} |"
        )


if __name__ == "__main__":
    main()
