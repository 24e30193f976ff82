"""The audit of releases on steps with planted faults and on steps that are right: how often each is refuted.

python -m benchmarks.privacy.release_audit --correct 400 --faulty 100
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.common import run
from gradleak.privacy import binomial
from gradleak.privacy.auditing.releases import audit_releases
from tests.support.planted_releases import CORRECT, FAULTS, RELEASES, Release
from tests.support.planted_releases import run as releases_of

SIGNIFICANCE = 0.01


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--correct", type=int, default=400)
    reader.add_argument("--faulty", type=int, default=100)
    reader.add_argument("--seed", type=int, default=2026)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=(asked.seed,)):
        print_page(asked.correct, asked.faulty, asked.seed)


def refuted(release: Release, runs: int, seed: Sequence[int]) -> tuple[int, Counter[str]]:
    hits, names = 0, Counter[str]()
    for index in range(runs):
        audit = audit_releases(**releases_of(release, np.random.default_rng([*seed, index])), significance=SIGNIFICANCE)
        hits += audit.refuted
        names.update(check.name for check in audit.failed)
    return hits, names


def print_page(correct: int, faulty: int, seed: int) -> None:
    print("# The audit of releases on planted faults\n")
    print(f"{RELEASES} releases of each world, at significance {SIGNIFICANCE:g} over all checks; intervals of 95 %.\n")
    print("| step | refuted | interval | checks that fail most often |\n|---|---|---|---|")
    for place, (name, release) in enumerate({"right": CORRECT, **FAULTS}.items()):
        runs = correct if name == "right" else faulty
        hits, names = refuted(release, runs, [seed, place])
        low, high = binomial.interval(hits, runs, 0.95)
        often = ", ".join(f"{check} ({count})" for check, count in names.most_common(2)) or "–"
        print(f"| {name} | {hits} of {runs} | {low:.3f}–{high:.3f} | {often} |")


if __name__ == "__main__":
    main()
