"""Two runs over the same private batches differ by what was changed between them, and a paired difference says so
with far fewer batches than two separate intervals. Must not know how it is printed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from gradleak.core.errors import UsageError
from gradleak.core.record import Record
from gradleak.harness.judging.intervals import CONFIDENCE
from gradleak.harness.request.plan import Plan
from gradleak.harness.running.store import read_plan, read_records
from gradleak.report.conclusions.pooling import NO_RESULT, ORDER, cells

Key = tuple[str, str, str]
"""Scenario label, defense, attack label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One metric of one attack against one defense in both runs.

    Attributes:
        first, second: means over the batches that both runs hold; gain: second − first.
        low, high: Student's 95 % interval of the gain over batches; None for one batch, or where all gains are equal and
            leave no spread to estimate.
        pairs: number of batches.
    """

    defense: str
    attack: str
    metric: str
    first: float
    second: float
    gain: float
    low: float | None
    high: float | None
    pairs: int
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two runs beside each other.

    Attributes:
        changed: how the second plan differs from the first, as ``"threat: honest_server → naive_server"``.
        unpaired: cells with a result in one of the runs only.
    """

    changed: tuple[str, ...]
    differences: tuple[Difference, ...]
    unpaired: tuple[str, ...]


def compare(first: Path, second: Path) -> Comparison:
    """Pairs the cells of two runs by defense, attack and batch.

    Attacks are paired by name, so that two settings of one attack can be compared.

    Raises:
        DataError: if a folder holds no run.
        UsageError: if the runs did not draw the same batches.
    """
    plans = read_plan(first), read_plan(second)
    _require_same_batches(*plans)
    ours, theirs = (_results(read_records(path)) for path in (first, second))
    shared = [key for key in ours if key in theirs]
    return Comparison(
        changed=plans[1].differences(plans[0]),
        differences=tuple(one for key in shared for one in _differences(key, ours[key], theirs[key])),
        unpaired=tuple(" ".join(filter(None, key)) for key in {**ours, **theirs} if (key in ours) != (key in theirs)),
    )


def _require_same_batches(first: Plan, second: Plan) -> None:
    settings = {"seed": "--seed", "batch_size": "--batch-size", "max_length": "--max-length"}
    unequal = [option for name, option in settings.items() if getattr(first, name) != getattr(second, name)]
    if first.data.fingerprint != second.data.fingerprint:
        unequal.append("--data")
    if unequal:
        raise UsageError(
            f"These runs did not attack the same batches: they differ in {', '.join(unequal)}. Differences are paired batch "
            "by batch; run both with the same seed, batch size, length and data."
        )


def _results(records: Sequence[Record]) -> dict[Key, dict[int, Record]]:
    """The repeats of every cell that ended in a result."""
    found = {
        (cell.scenario, cell.defense, cell.attack): {
            record.repeat: record for record in cell.records if record.status["name"] not in NO_RESULT
        }
        for cell in cells(records)
    }
    return {key: repeats for key, repeats in found.items() if repeats}


def _differences(key: Key, ours: Mapping[int, Record], theirs: Mapping[int, Record]) -> list[Difference]:
    common = sorted(ours.keys() & theirs.keys())
    named = [name for repeat in common for name in ours[repeat].scores if name in theirs[repeat].scores]
    ranks = {name: place for place, name in enumerate((*ORDER["text"], *ORDER["image"]))}
    found = []
    for metric in sorted(set(named), key=lambda name: ranks.get(name, len(ranks))):
        pairs = [(ours[r].scores.get(metric), theirs[r].scores.get(metric)) for r in common]
        values = [(float(a["value"]), float(b["value"]), bool(a["higher_is_better"])) for a, b in pairs if a and b]
        found.append(_difference(key, metric, values))
    return found


def _difference(key: Key, metric: str, values: Sequence[tuple[float, float, bool]]) -> Difference:
    gains = [second - first for first, second, _ in values]
    low, high = student(gains)
    return Difference(
        defense=key[1],
        attack=key[2],
        metric=metric,
        first=statistics.fmean(first for first, _, _ in values),
        second=statistics.fmean(second for _, second, _ in values),
        gain=statistics.fmean(gains),
        low=low,
        high=high,
        pairs=len(gains),
        higher_is_better=values[0][2],
    )


def student(gains: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of a mean; None without a spread to estimate it from."""
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    if spread == 0.0 or not math.isfinite(spread):
        return None, None
    mean = statistics.fmean(gains)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(gains) - 1)) * spread / math.sqrt(len(gains))
    return mean - reach, mean + reach
