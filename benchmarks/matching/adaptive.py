"""Is an attack that knows the defense at least as strong as one that does not? Same updates, same starts, two adversaries.

    python -m benchmarks.matching.adaptive --out runs/adaptive [--model random:gpt2] [--repeats 10]

Two ordinary audits of the same batches, by ``honest_server`` (knows the defense) and by ``naive_server`` (does not), then
``gradleak compare``: mean token recall of both, and the mean paired difference with its Student 95 % interval over
batches. No interval: the attack did the same in every batch, or the gain was the same in all. Resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.common import run
from gradleak.harness.request.prepare import Request, prepare
from gradleak.harness.running import runner
from gradleak.harness.running.store import RunFolder, read_records
from gradleak.report.conclusions.compare import Difference, compare

SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
DEFENSES = (
    "gaussian(relative_std=0.1)",
    "laplace(scale=0.001)",
    "clip(max_norm=0.01)",
    "prune(fraction=0.9)",
    "prune(fraction=0.9, scope=tensor)",
    "sign()",
    "quantize(dtype=int8)",
)
ATTACKS = "token_support,span,dlg(iterations={n}),inverting_gradients(iterations={n}),tag(iterations={n})"
ADAPTIVE, NAIVE = "honest_server", "naive_server"


def measure(folder: Path, threat: str, arguments: argparse.Namespace) -> None:
    """One adversary against every defense."""
    prepared = prepare(
        Request(
            model=arguments.model,
            batch_size=1,
            max_length=16,
            loss="classification",
            attacks=arguments.attacks.format(n=arguments.iterations),
            defenses=tuple(arguments.defenses),
            threat=threat,
            repeats=arguments.repeats,
            settings=SMALL if arguments.model.startswith("random:") else {},
        )
    )
    with RunFolder(folder, prepared.plan) as store:
        runner.run(prepared.plan, prepared.subject, prepared.source, store)


def table(differences: Iterable[Difference]) -> str:
    lines = ["| defense | attack | adaptive | naive | difference [95 % interval] | batches |", "|---" * 6 + "|"]
    for one in differences:
        if one.metric == "token_recall" and one.defense != "none":
            spread = "" if one.low is None or one.high is None else f" [{one.low:+.2f}, {one.high:+.2f}]"
            gain = f"{one.gain:+.2f}{spread}"
            lines.append(
                f"| {one.defense} | {one.attack} | {one.second:.2f} | {one.first:.2f} | {gain} | {one.pairs} |"
            )
    return "\n".join(lines)


def print_page(arguments: argparse.Namespace, recording: run.Recording) -> None:
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    folders = {threat: arguments.out / threat for threat in (NAIVE, ADAPTIVE)}
    for threat, folder in folders.items():
        measure(folder, threat, arguments)
        recording.audited(read_records(folder))
    print(table(compare(folders[NAIVE], folders[ADAPTIVE]).differences))


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--model", default="random:gpt2")
    parser.add_argument("--defenses", nargs="*", default=DEFENSES)
    parser.add_argument("--attacks", default=ATTACKS, help="specs; {n} stands for --iterations")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/adaptive"))
    arguments = run.parse(parser, argv)
    with run.record(__file__, arguments, seeds=range(arguments.repeats)) as recording:
        print_page(arguments, recording)


if __name__ == "__main__":
    main()
