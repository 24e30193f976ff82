"""What TAG's settings do to its recovery on MiniLM, at equal iterations times restarts.

    python -m benchmarks.matching.tag_recovery [--sentences 6] [--steps 200] [--seed 0] [--settings a,b]

The sentences are the first eight word pieces of shipped messages, drawn by the seed. Prints, for every setting, the mean
share of words found and of tokens in place (special tokens counted: both are known to the attack), and the mean of the
attack's own objective, which depends on ``balance`` and ``l1`` and can be compared only among settings that share them.
Then, for every setting, the mean paired difference to the first one with its Student 95 % interval over sentences.
Sentences that chose a setting must not confirm it: choose with one seed, confirm with another.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from importlib.resources import files
from statistics import mean, stdev

import torch

from benchmarks.common import run
from benchmarks.matching.tag_minilm import capture, score
from gradleak.attacks.tag import TAG
from gradleak.core.rng import derive
from gradleak.models import Subject, load_subject
from gradleak.report.conclusions.compare import student

LENGTH = 10
SETTINGS: dict[str, dict[str, float | int]] = {
    "default": {},
    "balance=0.5": {"balance": 0.5},
    "lr=0.1": {"lr": 0.1},
    "l1=0.1": {"l1": 0.1},
    "balance=0": {"balance": 0.0},
    "balance=1": {"balance": 1.0},
    "screened=1": {"screened": 1},
    "restarts=2": {"restarts": 2},
    "lr=1": {"lr": 1.0},
}


def sentences(count: int, seed: int) -> list[str]:
    """Texts of shipped messages that are longer than the length, so that all have eight words."""
    text = files("gradleak").joinpath("data/messages.csv").read_text(encoding="utf-8")
    rows = [row["text"] for row in csv.DictReader(text.splitlines()) if len(row["text"].split()) >= LENGTH]
    order = torch.randperm(len(rows), generator=derive(seed, "sentences"))
    return [rows[i] for i in order[:count].tolist()]


def trial(subject: Subject, text: str, arguments: dict[str, float | int], steps: int) -> tuple[float, float, float]:
    """Share of words found, share of tokens in place, and the objective of one attack."""
    assert subject.tokenizer is not None
    ids, mask = subject.tokenizer.encode([text], LENGTH)
    observation = capture(subject, ids, mask)
    iterations = steps // int(arguments.get("restarts", 1))
    attack = TAG(**({"iterations": iterations, "patience": iterations} | arguments))  # pyright: ignore[reportArgumentType]
    found = attack(observation, rng=derive(0, "attack", text))
    assert found.objective is not None
    return *score(subject, ids[0].tolist(), found.records[0].tolist()), found.objective


def difference(gains: list[float]) -> str:
    """Mean and Student 95 % interval; none where all gains are equal."""
    low, high = student(gains)
    return f"{mean(gains):+.2f}" + ("" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]")


def print_page(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    subject = load_subject("minilm", loss="classification", classes=2)
    texts = sentences(arguments.sentences, arguments.seed)
    table: dict[str, list[tuple[float, float, float]]] = {}
    print("| setting | words found (sd) | in place (sd) | objective | CPU s per sentence |\n|---|---|---|---|---|")
    for name in arguments.settings.split(","):
        cpu = time.process_time()
        runs = [trial(subject, text, SETTINGS[name], arguments.steps) for text in texts]
        table[name] = runs
        cpu = (time.process_time() - cpu) / len(texts)
        bags, places, values = zip(*runs, strict=True)
        shares = " | ".join(f"{mean(share):.2f} ({stdev(share):.2f})" for share in (bags, places))
        print(f"| {name} | {shares} | {mean(values):.3g} | {cpu:.0f} |", flush=True)
    first, *others = table
    if others:
        print(f"\n| setting | words found, minus {first} | in place, minus {first} |\n|---|---|---|")
    for name in others:
        pairs = list(zip(table[name], table[first], strict=True))
        gains = " | ".join(difference([ours[k] - theirs[k] for ours, theirs in pairs]) for k in (0, 1))
        print(f"| {name} | {gains} |")
    print("\nPer sentence, words found / in place:\n")
    for name, runs in table.items():
        print(f"- {name}: " + ", ".join(f"{bag:.2f}/{place:.1f}" for bag, place, _ in runs))


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--sentences", type=int, default=6)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    arguments = run.parse(parser, argv)
    with run.record(__file__, arguments, seeds=(arguments.seed,)):
        print_page(arguments)


if __name__ == "__main__":
    main()
