"""One photograph from the first two tensors of a vision transformer's update, by ``patch_exact``.

    python -m benchmarks.images.closed_form [--seeds 20] [--only clean,rounded,noisy]

Even seeds draw from the first half of the photographs, on which the settings were chosen, odd ones from the second. *Naive* is the plain
least-squares solution of the same two tensors; *mean* is a gray picture of the prior's mean, which needs no update.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.common import run
from benchmarks.images.common import Outcome, attack_on, interval_of_mean, interval_of_share, subject_of
from benchmarks.images.pictures import batch, psnr
from gradleak.attacks.patch_exact import PatchExact
from gradleak.mechanics.patches.prior import MEAN

STRUCTURES = (
    ("vit", "class token"),
    ("deit", "class and distillation token"),
    ("ijepa", "no class token"),
    ("dinov2_with_registers", "class token, four registers"),
)
NOISES = (
    ("bf16", "none", 64, 8, "rounded"),
    ("fp16", "none", 64, 8, "rounded"),
    ("float32", "quantize(dtype=int8)", 32, 4, "noisy"),
    ("float32", "gaussian(relative_std=0.01)", 32, 4, "noisy"),
    ("float32", "gaussian(relative_std=0.1)", 32, 2, "noisy"),
    ("float32", "gaussian(relative_std=0.01)", 64, 2, "noisy"),
    ("float32", "quantize(dtype=int8)", 64, 2, "noisy"),
)


def picture(size: int, seed: int) -> torch.Tensor:
    return batch(("first", "second")[seed % 2], size, 1, seed=seed)


def measure(
    kind: str, size: int, seed: int, *, width: int, chain: str = "none", dtype: str = "float32", iterations: int = 30
) -> Outcome:
    subject = subject_of(kind, size=size, width=width, blocks=4, seed=seed)
    return attack_on(
        subject, picture(size, seed), PatchExact(iterations=iterations), seed=seed, chain=chain, dtype=dtype
    )


def halves(outcomes: dict[int, Outcome]) -> list[tuple[str, list[Outcome]]]:
    split = (("first half", 0), ("second half", 1))
    return [(name, [o for seed, o in outcomes.items() if seed % 2 == parity]) for name, parity in split]


def clean(seeds: int) -> None:
    print("## Clean gradients in float32\n")
    print(
        "| structure | size | width | table | photographs | EXACT (95 % interval) | PSNR | lowest | CPU milliseconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    cases = [(kind, words, size, 192, "none") for kind, words in STRUCTURES for size in (32, 64, 96)]
    cases += [("vit", "class token", size, 192, "frozen_embeddings()") for size in (32, 64)]
    cases += [("vit", "class token", 224, 384, "none")]
    for kind, words, size, width, chain in cases:
        many = min(seeds, 20 if size <= 64 else 6)
        found = {seed: measure(kind, size, seed, width=width, chain=chain) for seed in range(many)}
        table = "trained" if chain == "none" else "frozen"
        for half, outcomes in halves(found):
            exact = sum(o.status == "EXACT" for o in outcomes)
            scores = [o.psnr[0] for o in outcomes]
            print(
                f"| `{kind}`: {words} | {size} | {width} | {table} | {half} | {interval_of_share(exact, len(outcomes))} | "
                f"{interval_of_mean(scores)} | {min(scores):.1f} | {interval_of_mean([1000 * o.seconds for o in outcomes])} |",
                flush=True,
            )


def noise(which: str, seeds: int) -> None:
    print(f"\n## {'Rounded' if which == 'rounded' else 'Noisy'} updates\n")
    print("| format | stage | size | photographs | mean | naive | two tensors | attack | lowest | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for dtype, chain, size, many, kind in NOISES:
        if kind != which:
            continue
        found: dict[int, Outcome] = {}
        others: dict[int, tuple[float, float, float]] = {}
        for seed in range(min(many, seeds)):
            found[seed] = measure("vit", size, seed, width=192, chain=chain, dtype=dtype)
            few = measure("vit", size, seed, width=192, chain=chain, dtype=dtype, iterations=1)
            others[seed] = (
                psnr(picture(size, seed), torch.full((1,), MEAN)),
                naive(size, seed, chain, dtype),
                few.psnr[0],
            )
        for half, parity in (("first half", 0), ("second half", 1)):
            kept = [seed for seed in found if seed % 2 == parity]
            columns = [interval_of_mean([others[seed][j] for seed in kept]) for j in range(3)]
            scores = [found[seed].psnr[0] for seed in kept]
            print(
                f"| {dtype} | `{chain}` | {size} | {half} ({len(kept)}) | {' | '.join(columns)} | {interval_of_mean(scores)} | "
                f"{min(scores):.1f} | {interval_of_mean([found[seed].seconds for seed in kept])} |",
                flush=True,
            )


def naive(size: int, seed: int, chain: str, dtype: str) -> float:
    """The plain solution of the two tensors."""
    from gradleak.attacks.patch_exact.reading import PatchCase
    from gradleak.core.batch import Batch
    from gradleak.core.channel import Channel
    from gradleak.core.knowledge import Knowledge
    from gradleak.core.rng import derive
    from gradleak.harness.request import catalogue
    from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
    from gradleak.mechanics.patches.closed_form import solve_patches

    subject = subject_of("vit", size=size, width=192, blocks=4, seed=seed)
    training = LocalTraining(dtype=dtype)  # type: ignore[arg-type]
    channel = Channel(trainer=ClientTrainer(subject=subject, training=training), stages=catalogue.make_stages(chain))
    labels = torch.randint(0, subject.classes, (1,), generator=derive(seed, "labels"))
    pixels = picture(size, seed)
    update = channel.observe(
        Batch(inputs=pixels, mask=torch.ones(1, dtype=torch.bool), labels=labels), derive(seed, "channel")
    )
    case = PatchCase.of(update, Knowledge(facts={"subject": subject}).view(PatchExact.needs | PatchExact.uses))
    rows = case.rows()
    assert rows is not None
    return psnr(pixels, case.picture(solve_patches(rows, case.gradient).patches, rest=MEAN))


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(
        "# One photograph in closed form\n\nPrinted by `python -m benchmarks.images.closed_form`. Hugging Face classes with random"
    )
    print(
        "weights, patch 16, 4 blocks. PSNR in dB, at most 120, mean with Student 95 % interval over photographs and seeds.\n"
    )
    for part in asked.only.split(","):
        if part == "clean":
            clean(asked.seeds)
        else:
            noise(part, asked.seeds)


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="at most so many pictures per cell")
    parser.add_argument("--only", default="clean,rounded,noisy", help="comma-separated parts; noisy takes an hour")
    asked = run.parse(parser, argv)
    with run.record(__file__, asked, seeds=range(asked.seeds)):
        print_page(asked)


if __name__ == "__main__":
    main()
