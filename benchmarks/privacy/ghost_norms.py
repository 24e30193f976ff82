"""One step of ``dpsgd`` on MiniLM: with every example's own gradient, and with norms and one weighted sum from factors.

python -m benchmarks.privacy.ghost_norms

Each cell is a process of its own, because the peak of memory is that of a process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import run

CELLS = ((4, 32), (8, 32), (16, 32), (8, 128))
WAYS = ("whole", "ghost")


def measure(way: str, records: int, tokens: int) -> dict[str, Any]:
    import torch
    from torch import Tensor

    from gradleak.core.batch import Batch, TrainingData
    from gradleak.core.rng import derive
    from gradleak.defenses.dpsgd import DPSGD
    from gradleak.mechanics.client.ghost_norms import GhostGradients
    from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
    from gradleak.models import Subject, load_subject

    if way == "whole":

        def without(subject: Subject, weights: Mapping[str, Tensor], data: TrainingData) -> None:
            return None

        GhostGradients.of = staticmethod(without)
    subject = load_subject("minilm")
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    rng = torch.Generator().manual_seed(records)
    ids = torch.randint(1000, 20_000, (records, tokens), generator=rng)
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.arange(records) % 2)
    stage, data = DPSGD(max_norm=0.5, noise_multiplier=0.0), trainer.prepare(batch)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    update = trainer.train(data, derive(0, "noise"), stage=stage)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = torch.cat([tensor.flatten().double() for _, tensor in update.items()])
    probe = torch.randn(len(total), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {
        "seconds": seconds,
        "megabytes": (peak - before) / 1024,
        "norm": float(total.norm()),
        "probe": float(total @ probe),
        "parameters": len(total),
    }


def print_page() -> None:
    print(
        "# Ghost norms\n\nPrinted by `python -m benchmarks.privacy.ghost_norms`: one step of `dpsgd` on MiniLM, float32, one thread."
    )
    print("`whole` holds every example's gradient, `ghost` its factors. Memory is the rise of the process's peak.\n")
    print(
        "| records | tokens | whole: CPU s | ghost: CPU s | whole: MB | ghost: MB | relative difference of the sums |"
    )
    print("|---|---|---|---|---|---|---|")
    for records, tokens in CELLS:
        whole, ghost = (
            json.loads(
                subprocess.run(
                    [sys.executable, "-m", "benchmarks.privacy.ghost_norms", "--cell", way, str(records), str(tokens)],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout.splitlines()[-1]
            )
            for way in WAYS
        )
        # A Gaussian probe of the difference has its norm as standard deviation.
        difference = abs(whole["probe"] - ghost["probe"]) / whole["norm"]
        print(
            f"| {records} | {tokens} | {whole['seconds']:.1f} | {ghost['seconds']:.1f} | {whole['megabytes']:.0f} | "
            f"{ghost['megabytes']:.0f} | {difference:.1e} |",
            flush=True,
        )
    print(f"\n{whole['parameters']:,} shared parameters: {whole['parameters'] * 4 / 2**20:.0f} MB a gradient.")


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--cell", nargs=3, metavar=("WAY", "RECORDS", "TOKENS"), help="measure this one and print JSON")
    asked = run.parse(reader, argv)
    if asked.cell is not None:
        way, records, tokens = asked.cell
        print(json.dumps(measure(way, int(records), int(tokens))))
        return
    with run.record(__file__, asked, seeds=None):
        print_page()


if __name__ == "__main__":
    main()
