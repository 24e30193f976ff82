"""A number that cannot be trusted says so by itself. Flags are computed from what a cell left behind, never set
by the attack that they judge. Must not run anything.

``compute_flags`` reads one cell; ``cross_flags`` compares the cells of one observation with each other, and is
therefore computed when they are all there. ``docs/flags.md`` tells a reader what to do about each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from gradleak.core.attack import Status
from gradleak.core.errors import UsageError
from gradleak.core.knowledge import ORACLE_FACTS
from gradleak.core.record import Record
from gradleak.harness.request import catalogue
from gradleak.metrics.psnr import CAP_DECIBELS


class Flag(Enum):
    """Why a score may not mean what it seems to mean. The value is the sentence that reports print."""

    OPTIMIZER_FAILED = (
        "The search ended where its own objective is worse than at the truth: a low score is the attack's failure."
    )
    AMBIGUOUS = (
        "The objective is as good at a wrong reconstruction as at the truth: this attack cannot tell them apart."
    )
    NON_ADAPTIVE = "A stage of the defense was not modeled by the attack: the score may flatter the defense."
    ORACLE_KNOWLEDGE = "The attack used facts about the private batch that a real receiver has no way to know."
    WEAKER_ATTACK_WON = "An attack that uses strictly fewer facts scored higher on the same update: this is no upper estimate of the leak."
    ZERO_GRADIENT = "The update is zero or below what its number format resolves: there was nothing to attack."
    NO_DP_CLAIM = (
        "The release carries no differential-privacy guarantee: nothing bounds what a better attack would find."
    )
    SATURATED_METRIC = (
        "A score stands at the end of its scale, where it cannot tell attacks, or an attack from guessing, apart."
    )


RELATIVE_TOLERANCE = 1e-3
"""Objectives that differ by less than this part of the larger are equal."""

ROUNDING = torch.finfo(torch.float32).eps
"""Objectives below this part of where the search began are equal: single precision does not tell them apart."""

HEADLINE: Mapping[str, str] = {"text": "token_recall", "image": "psnr"}
"""The score by which attacks are compared: every attack of the modality has it, ordered or not."""

_NUMBER_FORMATS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_STRICTLY = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What one cell left behind.

    Attributes:
        status: how the attack ended.
        objective, objective_at_truth: the attack's own objective at its proposal and at the truth; None if it has none.
        objective_at_start: the same where the search began, the scale of its rounding; None if unknown.
        exact: True if every record was recovered without error.
        stages, adapted: names of the stages of the channel, and of those that the attack modeled.
        known: facts that the adversary holds; declared: facts that the attack reads (``needs`` and ``uses``).
        update_norm: Euclidean norm of the released update; number_format: "float32", "bf16" or "fp16".
        epsilon: of the privacy claim, None if there is no guarantee.
        scores: metric name → value.
    """

    status: Status
    objective: float | None
    objective_at_truth: float | None
    objective_at_start: float | None
    exact: bool
    stages: tuple[str, ...]
    adapted: tuple[str, ...]
    known: frozenset[str]
    declared: frozenset[str]
    update_norm: float
    number_format: str
    epsilon: float | None
    scores: Mapping[str, float]

    def __post_init__(self) -> None:
        if self.number_format not in _NUMBER_FORMATS:
            raise UsageError(f"Unknown number format {self.number_format!r}. Known: {', '.join(_NUMBER_FORMATS)}.")


def compute_flags(evidence: Evidence) -> list[str]:
    """Names of the flags that one cell earns by itself, in the order of ``Flag``. An attack that does not apply has
    no result to distrust: only what concerns the release is raised then.
    """
    applies = evidence.status is not Status.NOT_APPLICABLE
    tests = {**_RELEASE_TESTS, **_ATTACK_TESTS} if applies else _RELEASE_TESTS
    return [flag.name for flag in Flag if flag in tests and tests[flag](evidence)]


def cross_flags(
    records: Iterable[Record],
    *,
    declared: Mapping[str, frozenset[str]] | None = None,
    best: Mapping[str, float] | None = None,
) -> dict[str, list[str]]:
    """Names of the flags that follow from comparing the cells of the same observation, for every cell.

    Cells share an observation if scenario, defenses, seed and repeat are the same.

    Args:
        declared: attack name → facts it reads; from the catalogue if None. Attacks that are not there are not compared.
        best: metric name → value of a perfect reconstruction; from the catalogue if None.

    Returns:
        cell → names in the order of ``Flag``; an empty list for most cells.
    """
    declared = _declared_facts() if declared is None else declared
    best = _best_values() if best is None else best
    flags: dict[str, list[str]] = {}
    for group in _same_observation(records):
        saturated = _saturated(group, best)
        for record in group:
            raised = {
                Flag.WEAKER_ATTACK_WON: _beaten_by_weaker(record, group, declared),
                Flag.SATURATED_METRIC: saturated,
            }
            flags[record.cell] = [flag.name for flag in Flag if raised.get(flag, False)]
    return flags


def _optimizer_failed(evidence: Evidence) -> bool:
    if evidence.status is Status.DIVERGED:
        return True
    return _gap(evidence) > 0 and not evidence.exact


def _ambiguous(evidence: Evidence) -> bool:
    here, there = evidence.objective, evidence.objective_at_truth
    comparable = here is not None and there is not None and evidence.status is not Status.DIVERGED
    return comparable and _gap(evidence) <= 0 and not evidence.exact


def _gap(evidence: Evidence) -> float:
    """By how much the objective at the truth is lower than at the proposal, beyond the tolerance; at most 0 if not."""
    here, there = evidence.objective, evidence.objective_at_truth
    if here is None or there is None:
        return 0.0
    tolerance = max(RELATIVE_TOLERANCE * max(abs(here), abs(there)), ROUNDING * abs(evidence.objective_at_start or 0.0))
    return here - there - tolerance


def _non_adaptive(evidence: Evidence) -> bool:
    return not set(evidence.stages) <= set(evidence.adapted)


def _oracle(evidence: Evidence) -> bool:
    return bool(ORACLE_FACTS & evidence.known & evidence.declared)


def _zero_gradient(evidence: Evidence) -> bool:
    """A norm below the smallest normal number leaves no entry that the format resolves with full precision."""
    return evidence.update_norm < torch.finfo(_NUMBER_FORMATS[evidence.number_format]).tiny


def _no_claim(evidence: Evidence) -> bool:
    return evidence.epsilon is None


def _capped(evidence: Evidence) -> bool:
    return evidence.scores.get("psnr", 0.0) >= CAP_DECIBELS


_Test = Callable[[Evidence], bool]

_RELEASE_TESTS: Mapping[Flag, _Test] = {Flag.ZERO_GRADIENT: _zero_gradient, Flag.NO_DP_CLAIM: _no_claim}

_ATTACK_TESTS: Mapping[Flag, _Test] = {
    Flag.OPTIMIZER_FAILED: _optimizer_failed,
    Flag.AMBIGUOUS: _ambiguous,
    Flag.NON_ADAPTIVE: _non_adaptive,
    Flag.ORACLE_KNOWLEDGE: _oracle,
    Flag.SATURATED_METRIC: _capped,
}


def _declared_facts() -> dict[str, frozenset[str]]:
    attacks = {name: catalogue.find("attacks", name) for name in catalogue.names("attacks")}
    return {name: attack.needs | attack.uses for name, attack in attacks.items()}


def _best_values() -> dict[str, float]:
    return {name: catalogue.find("metrics", name).best for name in catalogue.names("metrics")}


def _same_observation(records: Iterable[Record]) -> list[list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        key = json.dumps([record.scenario, record.defenses, record.seed, record.repeat], sort_keys=True)
        groups.setdefault(key, []).append(record)
    return list(groups.values())


def _beaten_by_weaker(record: Record, group: Iterable[Record], declared: Mapping[str, frozenset[str]]) -> bool:
    metric = HEADLINE[record.scenario["modality"]]
    facts, score = _facts(record, declared), _value(record.scores, metric)
    if facts is None or score is None:
        return False
    for other in group:
        other_facts, other_score = _facts(other, declared), _value(other.scores, metric)
        if (
            other_facts is not None
            and other_score is not None
            and other_facts < facts
            and other_score > score + _STRICTLY
        ):
            return True
    return False


def _facts(record: Record, declared: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """What the attack of this cell could read: facts it declares and this adversary holds; None if unknown."""
    facts = declared.get(record.attack_name())
    return None if facts is None else facts & frozenset(record.knowledge["facts"])


def _saturated(group: list[Record], best: Mapping[str, float]) -> bool:
    """True if for some metric every attack that has scores, and its baseline, reached the best possible value."""
    scored = [record for record in group if record.scores]
    shared = set(best).intersection(*(record.scores for record in scored)) if scored else set()
    return any(all(_at_best(record, metric, best[metric]) for record in scored) for metric in shared)


def _at_best(record: Record, metric: str, best: float) -> bool:
    reached = (_value(record.scores, metric), _value(record.baseline, metric))
    return all(value is not None and abs(value - best) <= _STRICTLY for value in reached)


def _value(scores: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    score = scores.get(metric)
    return None if score is None else float(score["value"])
