"""TAG on MiniLM: one sentence of ten tokens, 1,000 iterations, beside the LAMP authors' code, which runs it as a baseline.

    python -m benchmarks.matching.tag_minilm [--seeds 3] [--peer PEER_PYTHON CHECKOUT]

Prints CPU seconds (user + system), words found and tokens in their place for every seed. With ``--peer`` (made as
``peers/lamp.py`` says) that code attacks the same model and the same update in the same run. Both know the label, the
length and the two special tokens around the text, which count among the tokens in place. The reference notes measured
380 CPU-seconds with two threads for it, 7 of 8 words, 3 of 10 tokens in place.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.common import run
from gradleak.attacks.tag import TAG
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.client.framing import Framing
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

SENTENCE = "the patient was admitted with chest pain ."
LABEL = 1
PEER = Path(__file__).parents[1] / "peers" / "lamp.py"


def capture(subject: Subject, ids: Tensor, mask: Tensor) -> Observation:
    """The update of one labeled sentence, seen by an honest server."""
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(Batch(inputs=ids, mask=mask, labels=torch.tensor([LABEL])), derive(0, "training"))
    framing = Framing.of(subject.tokenizer)
    facts = {"subject": subject, "trainer": trainer, "batch_size": 1, "seq_len": ids.shape[1], "stages": ()}
    return Observation(update=update, knowledge=Knowledge(facts=facts | {"framing": framing}))


def score(subject: Subject, truth: list[int], guess: list[int]) -> tuple[float, float]:
    """Share of words found in any place, and share of tokens in place."""
    assert subject.tokenizer is not None
    words = [token for token in truth if token not in subject.tokenizer.special_ids]
    bag = sum(min(words.count(token), guess.count(token)) for token in set(words))
    return bag / len(words), sum(a == b for a, b in zip(truth, guess, strict=False)) / len(truth)


def run_peer(
    python: str, checkout: str, subject: Subject, ids: list[int], update: Update, iterations: int, seed: int
) -> tuple[list[int], float]:
    """Ids that the LAMP authors' code proposes, and its CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        assert isinstance(subject.module, PreTrainedModel)
        subject.module.save_pretrained(folder)
        problem = Path(folder) / "problem.json"
        problem.write_text(json.dumps({"ids": ids, "label": LABEL}), encoding="utf-8")
        command = [python, str(PEER), checkout, folder, str(problem)]
        options = ["--iterations", str(iterations), "--seed", str(seed)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if abs(found["norm"] / float(update.norm()) - 1) > 1e-4:
        raise SystemExit(f"The peer's update has the norm {found['norm']}, ours {float(update.norm())}.")
    return found["ids"], found["cpu"]


def print_page(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    subject = load_subject("minilm", loss="classification", classes=2)
    assert subject.tokenizer is not None
    ids, mask = subject.tokenizer.encode([SENTENCE], 32)
    truth = ids[0].tolist()
    observation = capture(subject, ids, mask)
    attack = TAG(iterations=arguments.iterations, patience=arguments.iterations)
    print("| code | seed | CPU s | words found | tokens in place |\n|---|---|---|---|---|")

    def row(code: str, seed: int, cpu: float, guess: list[int]) -> None:
        words, places = score(subject, truth, guess)
        total = len(truth)
        print(f"| {code} | {seed} | {cpu:.0f} | {words:.0%} | {round(places * total)}/{total} |", flush=True)

    for seed in range(arguments.seeds):
        cpu = time.process_time()
        found = attack(observation, rng=derive(seed, "attack"))
        row("gradleak", seed, time.process_time() - cpu, found.records[0].tolist())
        if arguments.peer is not None:
            python, checkout = arguments.peer
            update, steps = observation.update, arguments.iterations
            guess, cpu = run_peer(python, checkout, subject, truth, update, steps, 101 + seed)
            row("LAMP authors' TAG", 101 + seed, cpu, guess)


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--peer", nargs=2, metavar=("PEER_PYTHON", "CHECKOUT"))
    arguments = run.parse(parser, argv)
    with run.record(__file__, arguments, seeds=range(arguments.seeds)):
        print_page(arguments)


if __name__ == "__main__":
    main()
