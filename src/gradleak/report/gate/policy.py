"""A policy says how much an update may give away, and a run either shows that it keeps it, shows that it breaks it,
or shows neither. Must not know how the answer is printed.

    [[rule]]
    metric = "token_recall"       # at_most, or at_least for metrics where less is leakier (identification_rank, mse)
    at_most = 0.5
    defense = "clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)"     # without it every defense of the run, and
                                                                      # no defense only if there is no other cell
    attack = "span"                                                   # without it every attack of the run

    [[rule]]
    epsilon_at_most = 8.0         # of the claim that stands beside the scores
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from gradleak.core.errors import DataError, SpecError, UnknownNameError
from gradleak.core.record import Record
from gradleak.core.specs import Spec, spec_of
from gradleak.harness.request import catalogue
from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.pooling import Cell, Pooled, cells, groups

_KEYS = ("metric", "at_most", "at_least", "epsilon_at_most", "defense", "attack")


class Outcome(Enum):
    """What a run says about a rule. Order: the worst comes last."""

    PASS = "pass"
    INCONCLUSIVE = "inconclusive"
    FAIL = "fail"

    @property
    def rank(self) -> int:
        return list(Outcome).index(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One line of a policy: a limit on a metric, or on ε.

    Args:
        metric: name of a metric, or ``epsilon``.
        limit: the largest value allowed; the smallest if ``upward``.
        defense: as ``Record.defense_name`` writes it; attack: its name. Empty is every one.
    """

    metric: str
    limit: float
    upward: bool = False
    defense: str = ""
    attack: str = ""

    def __str__(self) -> str:
        words_of = "at least" if self.upward else "at most"
        who = f" by {self.attack}" if self.attack else ""
        return f"{self.metric}{who} {words_of} {self.limit:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a run says about one rule for one defense."""

    rule: str
    number: int
    defense: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """All findings of a policy; the run passes only if it shows that every rule is kept."""

    findings: tuple[Finding, ...] = field(default=())

    @property
    def outcome(self) -> Outcome:
        return max((one.outcome for one in self.findings), key=lambda o: o.rank, default=Outcome.INCONCLUSIVE)


def read_policy(path: Path) -> tuple[Rule, ...]:
    """The rules of a TOML file.

    Raises:
        DataError: if it cannot be read or holds no rule.
        SpecError, UnknownNameError: for a rule that says nothing, or names something that does not exist.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read the policy {path}: {error.strerror}. Give a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not a TOML file: {error}. Write [[rule]] and lines such as at_most = 0.5."
        ) from error
    for key in table:
        if key != "rule":
            raise UnknownNameError("table of a policy", key, ("rule",))
    rules = table.get("rule")
    if not isinstance(rules, list) or not rules or not all(isinstance(rule, dict) for rule in rules):
        raise DataError(f'{path} holds no rule. Write [[rule]], metric = "token_recall", at_most = 0.5.')
    return tuple(_rule(number, rule) for number, rule in enumerate(rules, start=1))


def _rule(number: int, table: dict[str, Any]) -> Rule:
    for key in table:
        if key not in _KEYS:
            raise UnknownNameError("key of a rule", key, _KEYS)
    limits = [key for key in ("at_most", "at_least", "epsilon_at_most") if key in table]
    epsilon = limits == ["epsilon_at_most"]
    if len(limits) != 1 or epsilon == ("metric" in table):
        raise SpecError(f"Rule {number} needs a metric with at_most or at_least, or epsilon_at_most alone.")
    limit = table[limits[0]]
    if isinstance(limit, bool) or not isinstance(limit, int | float):
        raise SpecError(f"Rule {number}: {limits[0]} must be a number, not {limit!r}.")
    attack, defense = (str(table.get(key, "")).strip() for key in ("attack", "defense"))
    metric = "epsilon" if epsilon else str(table["metric"])
    if not epsilon:
        catalogue.find("metrics", metric)
    if attack:
        catalogue.find("attacks", attack)
    return Rule(
        metric=metric,
        limit=float(limit),
        upward=limits == ["at_least"],
        defense=_canonical(defense) if defense else "",
        attack=attack,
    )


def _canonical(defense: str) -> str:
    """A chain with every default written out, as records name it."""
    specs = [spec_of(stage) for stage in catalogue.make_stages(defense)]
    plain = [Spec(type=s.type, args={k: v for k, v in s.args.items() if v is not None}) for s in specs]
    return "+".join(map(str, plain)) or "none"


def check(records: Sequence[Record], rules: Sequence[Rule]) -> Answer:
    """Holds every rule against every defense of a run.

    A cell breaks a limit if its value is beyond it, and keeps it if the whole 95 % interval is within; in between, more
    repeats would decide. Attacks that did not apply, broke down or whose search failed cannot show that a limit is kept;
    one that is beyond it all the same breaks it. A rule for which no attack came to a result is inconclusive.
    """
    return Answer(findings=tuple(one for n, rule in enumerate(rules, start=1) for one in _hold(n, rule, records)))


def _hold(number: int, rule: Rule, records: Sequence[Record]) -> list[Finding]:
    run = {key[2]: members for key, members in groups(cells(records)).items()}
    # Beside defenses, "none" is the yardstick and not what is deployed.
    wanted = {rule.defense} if rule.defense else run.keys() - {"none"} or run.keys()
    members = {defense: members for defense, members in run.items() if defense in wanted}
    if not members:
        missing = rule.defense or "any defense"
        sentence = f"the run holds no cell of {missing}"
        return [
            Finding(rule=str(rule), number=number, defense=missing, outcome=Outcome.INCONCLUSIVE, sentence=sentence)
        ]
    found = []
    for defense, group in members.items():
        outcome, sentence = _epsilon(rule, group) if rule.metric == "epsilon" else _metric(rule, group)
        found.append(Finding(rule=str(rule), number=number, defense=defense, outcome=outcome, sentence=sentence))
    return found


def _epsilon(rule: Rule, group: Sequence[Cell]) -> tuple[Outcome, str]:
    privacy = group[0].records[0].privacy
    epsilon = privacy.get("epsilon")
    kept = epsilon is not None and float(epsilon) <= rule.limit
    return (Outcome.PASS if kept else Outcome.FAIL), phrasing.guarantee(privacy)


def _metric(rule: Rule, group: Sequence[Cell]) -> tuple[Outcome, str]:
    judged: list[tuple[int, float, Outcome, str]] = []
    for cell in group:
        score = cell.scores.get(rule.metric)
        if score is None or (rule.attack and cell.records[0].attack_name() != rule.attack):
            continue
        outcome = _place(rule, score)
        if outcome is Outcome.FAIL or cell.tested():
            value, spread = phrasing.number(rule.metric, score.value), phrasing.interval(rule.metric, score)
            more = "; more repeats would decide" if outcome is Outcome.INCONCLUSIVE else ""
            sentence = f"{cell.attack} reached {value} (95% interval {spread}, n {score.n}){more}"
            judged.append((outcome.rank, -score.value if rule.upward else score.value, outcome, sentence))
    if not judged:
        return Outcome.INCONCLUSIVE, f"no attack{' ' + rule.attack if rule.attack else ''} came to a result"
    worst = max(judged, key=lambda one: one[:2])
    return worst[2:]


def _place(rule: Rule, score: Pooled) -> Outcome:
    sign = -1.0 if rule.upward else 1.0
    limit = sign * rule.limit
    if sign * score.value > limit:
        return Outcome.FAIL
    kept = score.has_interval and max(sign * score.low, sign * score.high) <= limit
    return Outcome.PASS if kept else Outcome.INCONCLUSIVE
