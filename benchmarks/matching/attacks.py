"""What each attack recovers on each model, undefended and under each defense, with intervals: the table of the README.

    python -m benchmarks.matching.attacks --model minilm --batch-sizes 1,2,4 --out runs/bench       # hours on two cores
    python -m benchmarks.matching.attacks --table runs/bench/*                                      # prints the tables again

Every cell is an ordinary audit (``gradleak.harness.request.prepare`` and ``run``), so an interrupted benchmark resumes. Texts
are drawn at random from the shipped messages; seeds 0 … repeats − 1 were not chosen. The adversary is the same for
all attacks: it knows the protocol, the defense, the batch size and the padded length, neither labels nor lengths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.common import run
from gradleak.core.record import Record
from gradleak.harness.request.prepare import Request, prepare
from gradleak.harness.running import runner
from gradleak.harness.running.store import RunFolder, read_records
from gradleak.report.conclusions.pooling import Pooled, cells

SMALL: Mapping[str, object] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
DEFENSES = (
    "gaussian(relative_std=0.1)",
    "laplace(scale=0.001)",
    "clip(max_norm=1.0)",
    "clip(max_norm=1.0)+gaussian(noise_multiplier=0.01)",
    "prune(fraction=0.9, scope=global)",
    "sign()",
    "quantize(dtype=int8)",
)
ATTACKS = "token_support,span,dlg(iterations={n}),inverting_gradients(iterations={n}),tag(iterations={n})"
METRICS = ("token_recall", "exact_match")


def requests(arguments: argparse.Namespace) -> Iterable[tuple[Path, Request]]:
    small = arguments.model != "minilm"
    # Matching is given a fixed number of iterations, not a time, so that the numbers do not depend on the machine.
    attacks = arguments.attacks.format(n=arguments.iterations)
    for size in (int(part) for part in arguments.batch_sizes.split(",")):
        scope = "undefended" if arguments.undefended else "defended"
        name = f"{arguments.model.replace(':', '-')}-b{size}-{arguments.threat}-{scope}-{arguments.iterations}"
        yield (
            arguments.out / name,
            Request(
                model=arguments.model,
                batch_size=size,
                loss="classification",
                attacks=attacks,
                defenses=() if arguments.undefended else DEFENSES,
                threat=arguments.threat,
                budget_seconds=arguments.budget,
                repeats=arguments.repeats,
                max_length=16,
                settings=SMALL if small else {},
            ),
        )


def measure(folder: Path, request: Request) -> None:
    prepared = prepare(request)
    with RunFolder(folder, prepared.plan) as store:
        runner.run(prepared.plan, prepared.subject, prepared.source, store)
    print(f"done: {folder.name}", file=sys.stderr, flush=True)


def table(records: Sequence[Record]) -> str:
    """A Markdown table: defense × attack, ``mean [low, high]`` over all records of all repeats, beside the prior alone."""
    found = cells(records)
    attacks = list(dict.fromkeys(one.attack for one in found))
    by_place = {(one.defense, one.attack): one for one in found}
    lines = []
    for metric in METRICS:
        counts = sorted({one.scores[metric].n for one in found if metric in one.scores})
        lines += [f"\n{metric}; records per cell: {', '.join(map(str, counts))}\n"]
        lines += ["| defense | " + " | ".join(attacks) + " | prior only |", "|---" * (len(attacks) + 2) + "|"]
        for defense in dict.fromkeys(one.defense for one in found):
            row = [by_place[defense, attack] for attack in attacks]
            texts = [_text(one.scores.get(metric)) for one in row]
            lines.append(f"| {defense} | " + " | ".join([*texts, _text(row[0].baseline.get(metric))]) + " |")
    return "\n".join(lines)


def _text(score: Pooled | None) -> str:
    return "–" if score is None else f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"


def print_page(arguments: argparse.Namespace, recording: run.Recording) -> None:
    torch.set_num_threads(arguments.threads)
    if not arguments.table:
        for folder, request in requests(arguments):
            measure(folder, request)
    folders = arguments.table or [folder for folder, _ in requests(arguments)]
    for folder in folders:
        print(f"\n## {folder.name}")
        records = read_records(folder)
        recording.audited(records)
        print(table(records))


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--model", default="random:bert")
    parser.add_argument("--batch-sizes", default="1,2,4")
    parser.add_argument("--threat", default="honest_server")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--attacks", default=ATTACKS, help="specs; {n} stands for --iterations")
    parser.add_argument(
        "--budget", type=float, help="seconds for all cells of a run together; then results depend on the machine"
    )
    parser.add_argument("--undefended", action="store_true", help="leave the defenses out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--table", type=Path, nargs="*", help="print the tables of these run folders and stop")
    arguments = run.parse(parser, argv)
    with run.record(__file__, arguments, seeds=range(arguments.repeats)) as recording:
        print_page(arguments, recording)


if __name__ == "__main__":
    main()
