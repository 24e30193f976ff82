"""A DP-SGD audit of MiniLM end to end: ε, attacks on real releases, best possible, bounds, bits and accuracy, in one table.

    python -m benchmarks.privacy.dpsgd_minilm [FOLDER]

Runs the command below, or goes on with it, and prints the records of its folder; the page is FOLDER/report.html.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import run
from gradleak.harness.bounds.store import read_bounds
from gradleak.harness.running.store import read_records
from gradleak.report.conclusions.frontier import read_sweep
from gradleak.report.page.bounds import sections

COMMAND = (
    "audit minilm --attacks span --frontier 'dpsgd(max_norm=1.0, noise_multiplier={knob})' --knobs 0.003,0.03,0.1,0.3,1 "
    "--repeats 3 --utility-rounds 120 --utility-seeds 3 --bound sentences --candidates 64 --measured 20"
)


def print_page(folder: Path, recording: run.Recording) -> None:
    # 1 is a violated order, which the table shows; 3 an inconclusive audit.
    ran = subprocess.run(
        [sys.executable, "-m", "gradleak", *shlex.split(COMMAND), "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if ran.returncode not in (0, 1, 3):
        sys.exit(ran.returncode)
    records = read_records(folder)
    recording.audited(records)
    (found,) = sections(read_bounds(folder), read_sweep(folder, records))
    print("# A DP-SGD audit of MiniLM\n\n    gradleak " + COMMAND + f"\n\nExit code {ran.returncode}.\n")
    for name, text in (*found.facts, *found.claim):
        print(f"- {name}: {text}")
    attacks = [name for name, _ in found.attacks]
    head = [
        "noise",
        "ε",
        *attacks,
        "best possible",
        "cap, this data",
        "cap, any data",
        "e^ε κ + δ",
        "bits leaked",
        "accuracy",
        "claim",
    ]
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for level in found.levels:
        rates = [f"{each.text} {each.interval}" for each in (*level.attacks, level.best)]
        rest = [level.instance, level.mechanism, level.approximate, level.bits]
        cells = [
            level.noise,
            level.epsilon,
            *rates,
            *rest,
            f"{level.accuracy.text} {level.accuracy.interval}",
            level.verdict,
        ]
        print("| " + " | ".join(cells) + " |")
    if found.accuracy is not None:
        print(
            f"\nAccuracy: {found.accuracy[1]}; without the defense {found.accuracy[0]}. ε and the bounds are of one release."
        )


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("folder", nargs="?", type=Path, default=Path("runs/dpsgd-minilm"))
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=None) as recording:
        print_page(asked.folder, recording)


if __name__ == "__main__":
    main()
