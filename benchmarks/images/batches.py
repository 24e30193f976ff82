"""Whole batches of photographs from one gradient of a vision transformer, by ``patch_batch``: successes, PSNR, CPU seconds.

    python -m benchmarks.images.batches [--seeds 20] [--only "B2 32"]

An honest server knows model, weights and training, neither labels nor pictures. Labels and crops are drawn anew for every seed. Even
seeds draw from the first half of the photographs, on which the settings were chosen, odd ones from the second.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.common import run
from benchmarks.images.common import Outcome, attack_on, interval_of_mean, interval_of_share, subject_of
from benchmarks.images.pictures import batch
from gradleak.attacks.patch_batch import PatchBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    name: str
    records: int
    size: int
    width: int = 192
    blocks: int = 4
    kind: str = "vit"
    chain: str = "none"
    seeds: int = 20
    heads: int = 3
    patch: int = 16


CELLS = (
    Cell(name="B2 32", records=2, size=32),
    Cell(name="B4 32", records=4, size=32),
    Cell(name="B2 64", records=2, size=64, seeds=10),
    Cell(name="B8 32", records=8, size=32, seeds=2),
    Cell(name="B2 32 frozen", records=2, size=32, chain="frozen_embeddings()", seeds=10),
    Cell(name="B4 32 deit", records=4, size=32, kind="deit", seeds=4),
    Cell(name="B4 32 registers", records=4, size=32, kind="dinov2_with_registers", seeds=4),
    Cell(name="B4 32 no class token", records=4, size=32, kind="ijepa", seeds=4),
    Cell(name="B4 32 hidden 96", records=4, size=32, width=96, seeds=4),
    Cell(name="B4 32 hidden 384, 12 blocks, 6 heads", records=4, size=32, width=384, blocks=12, heads=6, seeds=2),
    Cell(name="B3 24 patch 8", records=3, size=24, patch=8, seeds=4),
    Cell(name="B2 32 two blocks", records=2, size=32, blocks=2, seeds=10),
)


def measure(cell: Cell, seed: int) -> Outcome:
    subject = subject_of(
        cell.kind, size=cell.size, width=cell.width, blocks=cell.blocks, seed=seed, heads=cell.heads, patch=cell.patch
    )
    pixels = batch(("first", "second")[seed % 2], cell.size, cell.records, seed=seed)
    return attack_on(subject, pixels, PatchBatch(), seed=seed, chain=cell.chain)


def row(cell: Cell, half: str, outcomes: Sequence[Outcome]) -> str:
    exact = sum(o.status == "EXACT" for o in outcomes)
    false = sum(o.status == "EXACT" and min(o.psnr) < 48 for o in outcomes)
    worst = [min(o.psnr) for o in outcomes]
    return (
        f"| {cell.name} | {half} | {interval_of_share(exact, len(outcomes))} | {false} | {interval_of_mean(worst)} | {min(worst):.1f} | "
        f"{max(o.certificate for o in outcomes):.1e} | {interval_of_mean([o.seconds for o in outcomes])} | "
        f"{max(o.seconds for o in outcomes):.0f} |"
    )


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print("# Batches of photographs, exactly\n")
    print(
        "Printed by `python -m benchmarks.images.batches`. Hugging Face classes with random weights, float32, patch 16 unless said."
    )
    print(
        "EXACT: the replayed update equals the released one to rounding. False: of those, with a picture below 48 dB (eight-bit"
    )
    print(
        "rounding alone gives 59 dB). PSNR in dB of the worst picture of each batch, at most 120, mean with Student 95 % interval."
    )
    print("Labels are drawn and unknown to the attack.\n")
    print(
        "| cell | photographs | EXACT (95 % interval) | false | worst PSNR | lowest | largest residual | CPU seconds | longest |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in CELLS:
        if asked.only and cell.name not in asked.only.split(";"):
            continue
        seeds = range(min(cell.seeds, asked.seeds))
        outcomes = {seed: measure(cell, seed) for seed in seeds}
        for half, parity in (("first half", 0), ("second half", 1)):
            of_half = [outcomes[seed] for seed in seeds if seed % 2 == parity]
            if of_half:
                print(row(cell, half, of_half), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="at most so many batches per cell")
    parser.add_argument("--only", default="", help="cells by name, with a semicolon between")
    asked = run.parse(parser, argv)
    with run.record(__file__, asked, seeds=range(asked.seeds)):
        print_page(asked)


if __name__ == "__main__":
    main()
