"""Is an attack that knows the defense at least as strong as one that does not? Same updates, same starts, two adversaries.

    python benchmarks/adaptive.py [--defenses "sign()" "prune(fraction=0.9)"]

Prints mean token recall of the adaptive and of the naive attack, and the mean paired difference with its Student 95 %
interval over batches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from scipy import stats

from gradleak.audit.prepare import Request, prepare
from gradleak.audit.runner import run
from gradleak.audit.store import RunFolder

SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
DEFENSES = ["clip(max_norm=0.01)", "prune(fraction=0.9)", "prune(fraction=0.9, scope=tensor)", "sign()"]
ATTACKS = ["dlg(iterations={n})", "inverting_gradients(iterations={n})", "tag(iterations={n})"]


def recalls(model: str, defense: str, attack: str, threat: str, repeats: int) -> list[float]:
    """Token recall on the defended update of every batch."""
    prepared = prepare(
        Request(
            model=model,
            batch_size=1,
            max_length=16,
            loss="classification",
            attacks=attack,
            defenses=(defense,),
            threat=threat,
            repeats=repeats,
            settings=SMALL if model.startswith("random:") else {},
        )
    )
    with tempfile.TemporaryDirectory() as folder, RunFolder(Path(folder) / "run", prepared.plan) as store:
        run(prepared.plan, prepared.subject, prepared.source, store)
        return [float(r.scores["token_recall"]["value"]) for r in store.records if r.defenses]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:bert")
    parser.add_argument("--defenses", nargs="*", default=DEFENSES)
    parser.add_argument("--attacks", nargs="*", default=ATTACKS)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| defense | attack | adaptive | naive | difference [95 % interval] |\n|---|---|---|---|---|")
    for defense in arguments.defenses:
        for form in arguments.attacks:
            attack = form.format(n=arguments.iterations)
            adaptive, naive = (
                recalls(arguments.model, defense, attack, threat, arguments.repeats)
                for threat in ("honest_server", "naive_server")
            )
            gains = [a - b for a, b in zip(adaptive, naive, strict=True)]
            mean = statistics.fmean(gains)
            reach = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
            print(
                f"| {defense} | {attack} | {statistics.fmean(adaptive):.2f} | {statistics.fmean(naive):.2f} "
                f"| {mean:+.2f} [{mean - reach:+.2f}, {mean + reach:+.2f}] |",
                flush=True,
            )


if __name__ == "__main__":
    main()
