"""The parts of the page that are phrasing and tables, as plain values for the templates. Must not hold markup."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradleak.core.knowledge import FACTS, ORACLE_FACTS, THREATS
from gradleak.core.record import Record
from gradleak.mechanics.client.trainer import LocalTraining
from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.pooling import (
    NO_RESULT,
    Cell,
    Pooled,
    above_guessing,
    groups,
    leading_metrics,
    plain_text,
)
from gradleak.report.page.charts import context

RELEASE_FLAGS = ("NO_DP_CLAIM",)
"""Flags of the release, whatever the attack: said once per defense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A score ready to print; dashes where there is none."""

    value: str = "–"
    interval: str = "–"
    chance: str = "–"
    prior: str = "–"
    n: str = "–"
    above: bool = False
    """Above guessing by the rule of the verdict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """The relative error of the recomputed update, at worst over the repeats, and of the tensors that it misses most."""

    error: str
    tensors: tuple[tuple[str, str], ...]

    @staticmethod
    def of(cell: Cell) -> Certificate | None:
        certified = [
            (error, status)
            for status in (record.status for record in cell.records)
            if (error := status.get("certificate")) is not None
        ]
        if not certified:
            return None
        largest, worst = max(certified, key=lambda pair: pair[0])
        tensors = tuple((str(name), f"{error:.1e}") for name, error in worst.get("worst_tensors") or ())
        return Certificate(error=f"{largest:.1e}", tensors=tensors)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRow:
    attack: str
    lead: tuple[Value, ...]
    others: tuple[Value, ...]
    status: str
    status_sentence: str
    message: str
    flags: tuple[tuple[str, str], ...]
    adapted: str
    seconds: str
    n: str
    false: str
    certificate: Certificate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreGroup:
    defense: str
    note: str
    claim: str
    statement: str
    flags: tuple[tuple[str, str], ...]
    rows: tuple[ScoreRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreTable:
    lead: tuple[str, ...]
    others: tuple[str, ...]
    meanings: tuple[tuple[str, str], ...]
    groups: tuple[ScoreGroup, ...]

    @property
    def certified(self) -> bool:
        """Whether some attack recomputed the update of what it recovered."""
        return any(row.certificate is not None for group in self.groups for row in group.rows)


def score_table(found: Sequence[Cell]) -> ScoreTable:
    """All scores: the leading metric first, the others beside it."""
    lead = leading_metrics(found)
    names = list(dict.fromkeys(name for cell in found for name in cell.scores))
    others = tuple(name for name in names if name not in lead)
    return ScoreTable(
        lead=lead,
        others=others,
        meanings=tuple((name, phrasing.METRICS.get(name, "")) for name in (*lead, *others)),
        groups=tuple(_score_group(members, lead, others, found) for members in groups(found).values()),
    )


def _score_group(
    members: Sequence[Cell], lead: Sequence[str], others: Sequence[str], found: Sequence[Cell]
) -> ScoreGroup:
    privacy = members[0].records[0].privacy
    return ScoreGroup(
        defense=members[0].defense,
        note=context(members[0], found),
        claim=phrasing.guarantee(privacy),
        statement=str(privacy.get("statement") or "").removeprefix("no guarantee: "),
        flags=tuple(
            (flag, phrasing.FLAGS[flag]) for flag in RELEASE_FLAGS if any(flag in cell.flags for cell in members)
        ),
        rows=tuple(_score_row(cell, lead, others) for cell in members),
    )


def _score_row(cell: Cell, lead: Sequence[str], others: Sequence[str]) -> ScoreRow:
    sentences = dict.fromkeys(str(record.status.get("sentence") or "") for record in cell.records)
    messages = dict.fromkeys(str(record.status.get("message") or "") for record in cell.records)
    adapted = dict.fromkeys(name for record in cell.records for name in record.status.get("adapted") or ())
    seconds = sum(float(record.seconds.get("attack", 0.0)) for record in cell.records)
    return ScoreRow(
        attack=cell.attack,
        lead=tuple(_value(cell, name) for name in lead),
        others=tuple(_value(cell, name) for name in others),
        status=phrasing.statuses(cell.statuses),
        status_sentence=" ".join(sentence for sentence in sentences if sentence),
        message=next((message for message in messages if message), "") if not cell.scores else "",
        flags=tuple(
            (shown, phrasing.FLAGS.get(name, phrasing.UNKNOWN_FLAG))
            for name, shown in zip(cell.flags, phrasing.flags(cell.flags, len(cell.records)), strict=True)
            if name not in RELEASE_FLAGS
        ),
        adapted=", ".join(adapted),
        seconds=f"{seconds:.{0 if seconds >= 10 else 1}f} s in {phrasing.count(len(cell.records), 'run')}",
        n=str(max((score.n for score in cell.scores.values()), default="–")),
        false=phrasing.false_positives(cell),
        certificate=Certificate.of(cell),
    )


def _value(cell: Cell, metric: str) -> Value:
    score = cell.scores.get(metric)
    if score is None:
        return Value()
    return Value(
        value=phrasing.number(metric, score.value),
        interval=phrasing.interval(metric, score),
        chance="–" if score.chance is None else phrasing.number(metric, score.chance),
        prior=_level(metric, cell.baseline.get(metric)),
        n=str(score.n),
        above=above_guessing(cell, metric),
    )


def _level(metric: str, score: Pooled | None) -> str:
    return "–" if score is None else phrasing.number(metric, score.value)


def flag_legend(found: Iterable[Cell]) -> tuple[tuple[str, str], ...]:
    """Every flag of the run with its sentence."""
    names = dict.fromkeys(flag for cell in found for flag in cell.flags)
    return tuple((name, phrasing.FLAGS.get(name, phrasing.UNKNOWN_FLAG)) for name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adversary:
    name: str
    summary: str
    facts: tuple[tuple[str, str, bool], ...]
    """Name, meaning, and whether a real receiver has no way to know it."""
    lacks: tuple[str, ...]
    reads: tuple[tuple[str, str], ...]
    """Attack and the facts it read, where the run recorded them."""


def adversaries(found: Sequence[Cell]) -> tuple[Adversary, ...]:
    """The threat models of the run, in order."""
    names = dict.fromkeys(cell.threat for cell in found)
    return tuple(_adversary(name, [cell for cell in found if cell.threat == name]) for name in names)


def _adversary(name: str, found: Sequence[Cell]) -> Adversary:
    held = [str(fact) for fact in found[0].records[0].knowledge.get("facts", ())]
    threat = THREATS.get(name)
    reads = {cell.attack: plain_text(cell.records[0].knowledge.get("read") or []) for cell in found}
    return Adversary(
        name=phrasing.adversary(name),
        summary=threat.summary if threat is not None else "An adversary that was put together for this run.",
        facts=tuple((fact, FACTS.get(fact, ""), fact in ORACLE_FACTS) for fact in held),
        lacks=tuple(meaning for fact, meaning in FACTS.items() if fact not in held),
        reads=tuple((attack, facts) for attack, facts in reads.items() if facts),
    )


def scenario(found: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    """What was trained and shared; where scenarios differ, every value."""
    wanted = ("model", "modality", "loss", "share", "batch_size", "max_length", "data", "parameters", "tokenizer")
    many = [dict(record.scenario) for cell in found for record in cell.records[:1]]
    keys = [key for key in wanted if any(s.get(key) is not None for s in many)]
    return tuple(
        (key.replace("_", " "), " | ".join(dict.fromkeys(_setting(key, s.get(key)) for s in many))) for key in keys
    )


def _setting(key: str, value: Any) -> str:
    if key == "data" and isinstance(value, Mapping):
        return ", ".join(str(part) for part in (value.get("name"), _size(value.get("size"))) if part)
    if key == "parameters" and isinstance(value, int):
        return f"{value:,}"
    if key == "share" and isinstance(value, Mapping):
        return plain_text({"type": value["type"], "args": _chosen(str(value["type"]), value["args"])})
    return plain_text(value)


def _chosen(share: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of local training that say something: not left as they are, or what every delta has."""
    usual = {f.name: f.default for f in dataclasses.fields(LocalTraining)}
    always = {"steps", "lr", "optimizer"} if share == "delta" else set()
    return {name: value for name, value in args.items() if name in always or value != usual.get(name)}


def _size(size: Any) -> str:
    return "" if size is None else phrasing.count(int(size), "record")


def reproduction(plan: Mapping[str, Any], records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """What it takes to run this again: environment, seeds, data fingerprint, settings of every attack."""
    lines: dict[str, dict[str, None]] = {}
    for record in records:
        for key, value in record.environment.items():
            lines.setdefault(key.replace("_", " "), {})[plain_text(value)] = None
        data = record.scenario.get("data")
        if isinstance(data, Mapping) and data.get("fingerprint"):
            lines.setdefault("data fingerprint", {})[str(data["fingerprint"])] = None
        lines.setdefault("seeds", {})[str(record.seed)] = None
        lines.setdefault("repeats", {})[str(record.repeat)] = None
        lines.setdefault("attack settings", {})[plain_text(record.attack)] = None
    lines.setdefault("schema version", {}).update({str(record.schema_version): None for record in records})
    if plan.get("seed") is not None:
        lines.setdefault("plan seed", {})[str(plan["seed"])] = None
    return tuple((key, _listing(list(values))) for key, values in lines.items())


def _listing(values: list[str]) -> str:
    """Values in a row; a run of whole numbers as ``0–4``."""
    if len(values) > 2 and all(value.isdecimal() for value in values):
        whole = sorted(int(value) for value in values)
        if whole == list(range(whole[0], whole[-1] + 1)):
            return f"{whole[0]}–{whole[-1]}"
    return "\n".join(values) if any("(" in value for value in values) else ", ".join(values)


def plan_text(plan: Mapping[str, Any]) -> str:
    return json.dumps(plan, indent=2, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Untried:
    """What this run cannot speak about."""

    attacks: tuple[str, ...]
    failed: tuple[tuple[str, str, str], ...]
    """Attack, defense, reason."""
    threats: tuple[tuple[str, str], ...]
    defenses_run: tuple[str, ...]
    defenses: tuple[str, ...]


def untried(plan: Mapping[str, Any], found: Sequence[Cell]) -> Untried:
    """Attacks and adversaries of the catalogue that did not run, and those that ran to no result, with the reason."""
    available = plan.get("available") or {}
    ran = {cell.records[0].attack_name() for cell in found}
    threats = {cell.threat for cell in found}
    defenses = {str(stage["type"]) for cell in found for stage in cell.records[0].defenses}
    return Untried(
        attacks=tuple(name for name in _names(available, "attacks") if name not in ran),
        failed=_failed(found),
        threats=tuple(
            (phrasing.adversary(name), THREATS[name].summary if name in THREATS else "")
            for name in (_names(available, "threats") or tuple(THREATS))
            if name not in threats
        ),
        defenses_run=tuple(dict.fromkeys(phrasing.defense(cell.defense) for cell in found)),
        defenses=tuple(name for name in _names(available, "defenses") if name not in defenses),
    )


def _names(available: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    return tuple(str(name) for name in available.get(kind) or ())


def _failed(found: Sequence[Cell]) -> tuple[tuple[str, str, str], ...]:
    """Cells without a result; one line per attack and reason, whatever the number of defenses."""
    where: dict[tuple[str, str], dict[str, None]] = {}
    for cell in found:
        for record in cell.records:
            if record.status["name"] in NO_RESULT:
                reason = str(record.status.get("message") or record.status.get("sentence") or record.status["name"])
                where.setdefault((cell.attack, reason), {})[phrasing.defense(cell.defense)] = None
    return tuple((attack, ", ".join(defenses), reason) for (attack, reason), defenses in where.items())
