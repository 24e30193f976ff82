"""The cheapest setting of a defense that met what was asked, from frontiers that were run. Must not import torch before it is
called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradleak.core.errors import DataError

if TYPE_CHECKING:
    from gradleak.report.conclusions.recommend import Recommendation


def recommend(runs: Sequence[str | Path], *, leakage_below: float, accuracy_drop_below: float) -> Recommendation:
    """Names the cheapest setting of a defense that met both limits, or says that none did.

    Args:
        runs: folders that ``gradleak audit --frontier`` wrote.
        leakage_below: largest leakage allowed, a share of the private content in [0, 1].
        accuracy_drop_below: largest loss of accuracy allowed, in [0, 1].

    Raises:
        DataError: if a folder holds no frontier.
        UsageError: for a limit out of range.
    """
    from gradleak.harness.running.store import read_records
    from gradleak.report.conclusions import recommend as recommending
    from gradleak.report.conclusions.frontier import Sweep, read_sweep

    limits = recommending.Limits(leakage=leakage_below, drop=accuracy_drop_below)
    sweeps: list[Sweep] = []
    for run in map(Path, runs):
        sweep = read_sweep(run, read_records(run))
        if sweep is None:
            raise DataError(f"{run} holds no frontier. Run `gradleak audit --frontier SPEC --knobs A,B --out {run}`.")
        sweeps.append(sweep)
    return recommending.recommend(sweeps, limits)
