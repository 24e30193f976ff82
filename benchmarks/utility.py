"""What every defense of the catalogue costs a short federated training: accuracy, paired drop, time, what clients keep.

    python benchmarks/utility.py --task topics --rounds 120 --seeds 3
    python benchmarks/utility.py --task digits --rounds 120 --seeds 3

Knobs are those of ``docs/defenses.md`` where it names one, else the defaults; none was chosen for its accuracy. Weights,
split, clients and draws of a seed are the same in every row.
"""

from __future__ import annotations

import argparse

import torch

from gradleak.audit.prepare import read_chain
from gradleak.audit.utility import Interval, Schedule, Trained, drop, interval, train
from gradleak.audit.utility_tasks import TASKS

DEFENSES = (
    "gaussian(relative_std=0.5)",
    "gaussian(relative_std=5.0)",
    "clip(max_norm=1.0)",
    "clip(max_norm=1.0)+gaussian(noise_multiplier=0.01)",
    "clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)",
    "laplace(scale=0.01)",
    "prune(fraction=0.9)",
    "prune(fraction=0.99)",
    "sign()",
    "quantize(dtype=int8)",
    "qsgd(levels=16)",
    "random_mask(fraction=0.9)",
    "low_rank(rank=2)",
    "dgc(fraction=0.9)",
    "ada_defense()",
    "soteria(fraction=0.5)",
    "outpost()",
    "censor()",
    "frozen_embeddings()",
    "frozen_blocks(blocks=1)",
    "secure_aggregation(number=4)",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(TASKS), default="topics")
    parser.add_argument("--rounds", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--defenses", nargs="*", default=DEFENSES, help="only these, beside none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    schedule = Schedule(rounds=arguments.rounds, seeds=arguments.seeds)
    plain = [train(arguments.task, (), seed, schedule) for seed in range(schedule.seeds)]
    print(f"\n## {arguments.task}, {schedule.rounds} rounds, {schedule.seeds} seeds, chance {plain[0].chance:.2f}\n")
    print("| defense | accuracy | drop, paired | last loss | CPU s | clients keep | entries sent |")
    print("|---|---|---|---|---|---|---|")
    print(row("none", plain, plain), flush=True)
    for spec in arguments.defenses:
        found = [train(arguments.task, read_chain(spec), seed, schedule) for seed in range(schedule.seeds)]
        print(row(spec, found, plain), flush=True)


def row(spec: str, found: list[Trained], plain: list[Trained]) -> str:
    """One line of the table."""
    accuracy, without = _accuracies(found), _accuracies(plain)
    if len(accuracy) < len(found):
        reason = next(each.reason for each in found if each.reason)
        return f"| {spec} | no result: {reason} | – | – | – | – | – |"
    tail = [sum(each.losses[-10:]) / 10 for each in found if each.losses]
    seconds = sum(each.cpu_seconds for each in found) / len(found)
    sent = found[-1].released
    return (
        f"| {spec} | {_text(interval(list(accuracy.values())))} | {_text(drop(accuracy, without))} | "
        f"{sum(tail) / len(tail):.2f} | {seconds:.1f} | {max(each.kept_bytes for each in found) / 1024:.0f} KiB | "
        f"{'–' if sent is None else f'{100 * sent:.0f}%'} |"
    )


def _accuracies(found: list[Trained]) -> dict[int, float]:
    return {each.seed: each.accuracy for each in found if each.accuracy is not None}


def _text(found: Interval) -> str:
    return f"{found.value:.2f}" if found.low is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


if __name__ == "__main__":
    main()
