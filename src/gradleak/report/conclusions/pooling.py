"""Several records share an attack and a defense; this is the one place that pools them, so that the table, the
verdict and the page say the same number. Must not know how anything is printed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from gradleak.core.record import Record
from gradleak.core.specs import Spec
from gradleak.harness.judging.intervals import CONFIDENCE, clopper_pearson

UNBOUNDED = frozenset({"mse", "psnr", "identification_rank"})
"""Metrics whose values do not lie in [0, 1]."""

ORDER: Mapping[str, tuple[str, ...]] = {
    "text": ("exact_match", "token_recall", "token_accuracy", "rouge1", "rouge2", "rougeL", "identification_rank"),
    "image": ("psnr", "ssim", "mse", "identification_rank"),
}
"""Metrics in the order in which they are shown; others follow by name."""

LEAK_METRICS: Mapping[str, tuple[str, ...]] = {"text": ("exact_match", "token_recall"), "image": ("psnr",)}
"""Metrics that decide whether a cell is a leak; few, because each one more is a chance of a false alarm."""

HALF_THE_ERROR = 10 * math.log10(2)
"""PSNR in dB that a single image, which has no interval, must gain over guessing: half of the mean squared error."""

NO_RESULT = frozenset({"NOT_APPLICABLE", "DIVERGED"})
SEARCH_FAILED = "OPTIMIZER_FAILED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """A score over all repeats of a cell.

    Attributes:
        value: mean over records; low, high: 95 % interval; both equal ``value`` where there is no spread to estimate.
        chance: expected value of guessing in closed form, or None.
        n: number of records.
    """

    value: float
    low: float
    high: float
    chance: float | None
    n: int
    higher_is_better: bool
    has_interval: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """All repeats of one attack against one defense by one adversary.

    Attributes:
        scenario: what tells this scenario from the others of the run; empty if there is one only.
        statuses, flags: name → number of repeats that carry it, in order of first appearance.
    """

    scenario: str
    threat: str
    attack: str
    defense: str
    records: tuple[Record, ...]
    scores: Mapping[str, Pooled]
    baseline: Mapping[str, Pooled]
    statuses: Mapping[str, int]
    flags: Mapping[str, int]

    @property
    def modality(self) -> str:
        return str(self.records[0].scenario["modality"])

    @property
    def group(self) -> tuple[str, str, str]:
        """Cells of one group differ in the attack only."""
        return (self.scenario, self.threat, self.defense)

    def tested(self) -> bool:
        """True if at least one repeat ended in a result that may count against or for a defense."""
        return any(trustworthy(record) for record in self.records)


def trustworthy(record: Record) -> bool:
    """False if the attack did not apply, broke down, or its search missed an optimum that the truth attains."""
    return record.status["name"] not in NO_RESULT and SEARCH_FAILED not in record.flags


def pool(scores: Sequence[Mapping[str, Any]], *, bounded: bool) -> Pooled:
    """One score from those of several repeats.

    With values v, record counts n, weights w = n / Σn: the mean is m = Σ w v. A metric in [0, 1] gets the
    Clopper-Pearson interval for Σ n v successes out of Σ n. Any other gets Student's interval with k - 1 degrees of
    freedom and the squared standard error k / (k - 1) Σ w² (v - m)²: with a handful of repeats a bootstrap would be
    too narrow. A single repeat keeps the interval it came with.

    Args:
        scores: plain scores of one metric, at least one.
        bounded: whether the metric lies in [0, 1].
    """
    total = sum(int(score["n"]) for score in scores)
    weights = [int(score["n"]) / total for score in scores]
    values = [float(score["value"]) for score in scores]
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True))
    if bounded:
        low, high = clopper_pearson(min(max(mean * total, 0.0), float(total)), total)
    elif len(scores) == 1:
        low, high = float(scores[0]["low"]), float(scores[0]["high"])
    else:
        low, high = _student(values, weights, mean)
    chances = [score["chance"] for score in scores]
    known = None not in chances
    return Pooled(
        value=mean,
        low=low,
        high=high,
        chance=math.fsum(w * float(c) for w, c in zip(weights, chances, strict=True)) if known else None,
        n=total,
        higher_is_better=bool(scores[0]["higher_is_better"]),
        has_interval=bounded or len(scores) > 1 or low < high,
    )


def _student(values: Sequence[float], weights: Sequence[float], mean: float) -> tuple[float, float]:
    k = len(values)
    variance = math.fsum((w * (v - mean)) ** 2 for w, v in zip(weights, values, strict=True)) * k / (k - 1)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, k - 1)) * math.sqrt(variance)
    return mean - reach, mean + reach


def cells(records: Iterable[Record]) -> tuple[Cell, ...]:
    """Groups records by scenario, adversary, defense and attack; repeats are pooled. Undefended cells come first."""
    found = sorted(records, key=lambda record: record.repeat)
    by_key: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in sorted(found, key=_place(found)):
        key = (_text(record.scenario), str(record.knowledge["threat"]), record.defense_name(), _text(record.attack))
        by_key.setdefault(key, []).append(record)
    scenarios = _labels([dict(members[0].scenario) for members in by_key.values()])
    attacks = _attack_labels([members[0].attack for members in by_key.values()])
    return tuple(
        _cell(members, scenario, attack)
        for members, scenario, attack in zip(by_key.values(), scenarios, attacks, strict=True)
    )


def _place(records: Sequence[Record]) -> Any:
    """Sort key: scenario, adversary, defense ("none" first), attack, each in order of first appearance."""
    scenarios = _ranks(_text(record.scenario) for record in records)
    threats = _ranks(str(record.knowledge["threat"]) for record in records)
    defenses = _ranks(["none", *(record.defense_name() for record in records)])
    attacks = _ranks(_text(record.attack) for record in records)
    return lambda record: (
        scenarios[_text(record.scenario)],
        threats[str(record.knowledge["threat"])],
        defenses[record.defense_name()],
        attacks[_text(record.attack)],
        record.repeat,
    )


def _ranks(names: Iterable[str]) -> dict[str, int]:
    return {name: rank for rank, name in enumerate(dict.fromkeys(names))}


def _text(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, sort_keys=True)


def _cell(members: Sequence[Record], scenario: str, attack: str) -> Cell:
    return Cell(
        scenario=scenario,
        threat=str(members[0].knowledge["threat"]),
        attack=attack,
        defense=members[0].defense_name(),
        records=tuple(members),
        scores=_pool_all(
            [record.scores for record in members if record.status["name"] not in NO_RESULT],
            str(members[0].scenario["modality"]),
        ),
        baseline=_pool_all([record.baseline for record in members], str(members[0].scenario["modality"])),
        statuses=Counter(str(record.status["name"]) for record in members),
        flags=Counter(flag for record in members for flag in record.flags),
    )


def _pool_all(many: Sequence[Mapping[str, Mapping[str, Any]]], modality: str) -> dict[str, Pooled]:
    present: dict[str, list[Mapping[str, Any]]] = {}
    for scores in many:
        for name, score in scores.items():
            if score["n"] and score["value"] is not None:
                present.setdefault(name, []).append(score)
    first = [name for name in ORDER.get(modality, ()) if name in present]
    names = [*first, *sorted(present.keys() - set(first))]
    return {name: pool(present[name], bounded=name not in UNBOUNDED) for name in names}


def _labels(scenarios: Sequence[dict[str, Any]]) -> list[str]:
    """For each scenario the settings in which the scenarios of this run differ."""
    keys = dict.fromkeys(key for scenario in scenarios for key in scenario)
    differing = [key for key in keys if len({_text({"": scenario.get(key)}) for scenario in scenarios}) > 1]
    return [", ".join(f"{key}={plain_text(scenario.get(key))}" for key in differing) for scenario in scenarios]


def _attack_labels(attacks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The attack's name; with the arguments that differ where one name runs with several settings."""
    labels: list[str] = []
    for attack in attacks:
        others = [other["args"] for other in attacks if other["type"] == attack["type"]]
        args = {key: value for key, value in attack["args"].items() if any(o.get(key) != value for o in others)}
        labels.append(str(Spec(type=attack["type"], args=args)) if args else str(attack["type"]))
    return labels


def plain_text(value: Any) -> str:
    """A setting as one line: a spec as it is written on the command line, a mapping as ``key=value`` pairs."""
    if isinstance(value, Mapping):
        if set(value) == {"type", "args"}:
            return str(Spec(type=str(value["type"]), args=value["args"]))
        return ", ".join(f"{key}={plain_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain_text(part) for part in value)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def headline_metric(found: Sequence[Cell]) -> str:
    """The metric that the page leads with: whole records if any was recovered, else tokens; PSNR for images."""
    modality = found[0].modality if found else "text"
    for name in LEAK_METRICS[modality][:-1]:
        if any(name in cell.scores and cell.scores[name].value > 0 for cell in found):
            return name
    return LEAK_METRICS[modality][-1]


def leaking_metric(cell: Cell) -> str | None:
    """The first metric that shows a leak in this cell, or None.

    A leak is a record recovered exactly, or an interval whose lower end is above the prior-only value.
    """
    return next((name for name in LEAK_METRICS[cell.modality] if above_guessing(cell, name)), None)


def above_guessing(cell: Cell, metric: str) -> bool:
    """Whether the interval of this metric lies on the better side of the prior-only value; any exact record counts."""
    score, baseline = cell.scores.get(metric), cell.baseline.get(metric)
    if score is None:
        return False
    if metric == "exact_match":
        return score.value > 0
    if baseline is None:
        return False
    if not score.higher_is_better:
        return score.has_interval and score.high < baseline.value
    margin = HALF_THE_ERROR if metric == "psnr" and not score.has_interval else 0.0
    return score.low > baseline.value + margin


def leading_metrics(found: Sequence[Cell]) -> tuple[str, ...]:
    """The headline metric and the one that says most beside it, as far as the run holds them."""
    lead = headline_metric(found)
    second = {"exact_match": "token_recall", "token_recall": "token_accuracy", "psnr": "ssim"}[lead]
    return tuple(name for name in (lead, second) if any(name in cell.scores for cell in found)) or (lead,)


def strength(cell: Cell) -> tuple[float, ...]:
    """Sort key of how much a cell recovered: the leak metrics first, then every other, larger is stronger.

    A bag of tokens has no exact records to count; that is 0 of them, not less than 0.
    """
    leaks = [score.value if (score := cell.scores.get(name)) else 0.0 for name in LEAK_METRICS[cell.modality]]
    others = [_oriented(cell.scores.get(name)) for name in ORDER[cell.modality]]
    return (*leaks, *others)


def _oriented(score: Pooled | None) -> float:
    if score is None:
        return -math.inf
    return score.value if score.higher_is_better else -score.value


def groups(found: Sequence[Cell]) -> dict[tuple[str, str, str], tuple[Cell, ...]]:
    """Cells by scenario, adversary and defense, in order."""
    result: dict[tuple[str, str, str], tuple[Cell, ...]] = {}
    for cell in found:
        result[cell.group] = (*result.get(cell.group, ()), cell)
    return result


def strongest(found: Sequence[Cell]) -> Cell | None:
    """The cell that recovered most, trustworthy or leaking ones before others; None if no cell holds a score."""
    scored = [cell for cell in found if cell.scores]
    if not scored:
        return None
    return max(scored, key=lambda cell: (leaking_metric(cell) is not None, cell.tested(), strength(cell)))
