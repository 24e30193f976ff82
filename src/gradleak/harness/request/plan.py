"""An audit is plain data before it is work, so that it can be stored, compared and run again.

A plan names everything that changes a result and nothing that does not (where it is written, how it is shown). Must
not load models or data: their fingerprints are put in by whoever did.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradleak.core.errors import DataError, SpecError
from gradleak.core.loss import LossName
from gradleak.core.specs import Spec

PLAN_VERSION = 1
Plain = str | int | float | bool | None


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Call(_Strict):
    """``{"type": name, "args": {...}}``."""

    type: str
    args: dict[str, Plain] = Field(default_factory=dict)

    @staticmethod
    def of(spec: Spec) -> Call:
        return Call(type=spec.type, args=dict(spec.args))

    def spec(self) -> Spec:
        return Spec(type=self.type, args=self.args)

    def short(self) -> str:
        """As it is typed: arguments that are none are left out."""
        return str(Spec(type=self.type, args={key: value for key, value in self.args.items() if value is not None}))


class DataSource(_Strict):
    """Where the records come from. ``path`` None is the shipped messages, or records that were handed over in Python."""

    path: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    name: str = ""
    fingerprint: str = ""
    size: int = 0


class Plan(_Strict):
    """Everything that changes the records of an audit.

    Attributes:
        model: what was asked for; ``model_fingerprint`` identifies the weights that were found.
        settings: overrides of a random model's config.
        first_blocks: how many blocks of the model were loaded; None for all of them.
        share: the local training, a ``LocalTraining`` as plain data.
        defenses: one chain per column of the audit; the empty chain is "none".
        budget_seconds: wall time for all attacks together, shared out evenly over the cells; None is no limit.
        command, available: for the reader of a report: how to run the plan, and what the catalogue held. They change
            no result and do not count as a part of the plan.
    """

    plan_version: int = PLAN_VERSION
    model: str
    model_fingerprint: str = ""
    settings: dict[str, Plain] = Field(default_factory=dict)
    first_blocks: int | None = Field(default=None, ge=1)
    loss: LossName | None = None
    classes: int = Field(default=2, ge=1)
    data: DataSource = DataSource()
    batch_size: int = Field(default=1, ge=1)
    max_length: int = Field(default=32, ge=1)
    share: dict[str, Plain]
    threat: str
    attacks: tuple[Call, ...]
    defenses: tuple[tuple[Call, ...], ...]
    seed: int = 0
    repeats: int = Field(default=1, ge=1)
    budget_seconds: float | None = Field(default=None, gt=0)
    command: str = ""
    available: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    def fingerprint(self) -> str:
        """SHA-256 of what changes results. Where a file lies does not: its content does."""
        plain = self.model_dump(mode="json", exclude={"command", "available"})
        plain["data"] = {key: value for key, value in plain["data"].items() if key != "path"}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def cells(self) -> Iterator[Cell]:
        """Every cell, in the order in which they run: repeat, then defense, then attack."""
        for repeat in range(self.repeats):
            for defense in self.defenses:
                for attack in self.attacks:
                    yield Cell(seed=self.seed, repeat=repeat, defense=defense, attack=attack)

    def count(self) -> int:
        return self.repeats * len(self.defenses) * len(self.attacks)

    def cell_seconds(self) -> float | None:
        """The time one attack may take. Even shares, whatever ran before, so that a resumed run gives the same."""
        return None if self.budget_seconds is None else self.budget_seconds / self.count()

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises ``DataError`` if ``text`` is not a plan that this version can read."""
        try:
            return Plan.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the top level"
            raise DataError(
                f"This plan cannot be read: {first['msg']} at {place}. Run the audit again in a new folder."
            ) from error

    def differences(self, other: Plan) -> tuple[str, ...]:
        """What changed from ``other`` to this plan, as ``"seed: 0 → 1"``."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        keys = [key for key in {**theirs, **mine} if key not in {"data.path", "command"}]
        changed = [key for key in keys if theirs.get(key) != mine.get(key)]
        # What a user typed first; fingerprints follow from it and are long.
        changed.sort(key=lambda key: key.endswith("fingerprint"))
        return tuple(f"{key}: {_brief(key, theirs.get(key))} → {_brief(key, mine.get(key))}" for key in changed)

    def command_line(self) -> str:
        """The command line that runs this plan; for models and data that were handed over in Python, their names."""
        parts = ["gradleak", "audit", self.model]
        if self.data.path is not None:
            parts += ["--data", self.data.path]
        for option, column in (("--text-column", self.data.text_column), ("--label-column", self.data.label_column)):
            parts += [] if column is None else [option, column]
        parts += ["--batch-size", str(self.batch_size), "--max-length", str(self.max_length)]
        parts += [] if self.loss is None else ["--loss", self.loss]
        parts += ["--share", _share_text(self.share), "--threat", self.threat]
        parts += ["--attacks", ",".join(attack.short() for attack in self.attacks)]
        for chain in self.defenses:
            parts += ["--defenses", chain_name(chain)] if chain else []
        if all(not chain for chain in self.defenses):
            parts += ["--defenses", "none"]
        parts += ["--seed", str(self.seed), "--repeats", str(self.repeats)]
        parts += [] if self.budget_seconds is None else ["--budget", f"{self.budget_seconds:g}s"]
        for key, value in self.settings.items():
            parts += ["--set", f"{key}={value}"]
        parts += [] if self.first_blocks is None else ["--first-blocks", str(self.first_blocks)]
        return shlex.join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One attack on one defense in one repeat."""

    seed: int
    repeat: int
    defense: tuple[Call, ...]
    attack: Call

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the cell's specs, seed and repeat."""
        plain = [self.seed, self.repeat, [stage.model_dump() for stage in self.defense], self.attack.model_dump()]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]

    def label(self) -> str:
        return f"{self.attack.type} against {chain_name(self.defense)}"


def chain_name(chain: tuple[Call, ...]) -> str:
    """The chain as it is typed, ``"none"`` if it is empty."""
    return "+".join(stage.short() for stage in chain) or "none"


def distinct(kind: str, names: tuple[str, ...]) -> None:
    """Raises ``SpecError`` if a cell would run twice."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SpecError(f"The {kind} {twice[0]} is given twice with the same arguments. Leave one out.")


def _share_text(share: Mapping[str, Plain]) -> str:
    args = {key: value for key, value in share.items() if key != "share" and value is not None}
    return str(Spec(type=str(share["share"]), args=args))


def _brief(key: str, value: str | None) -> str | None:
    return f"{value[:19]}…" if value is not None and key.endswith("fingerprint") and len(value) > 20 else value


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in plain.items():
        if key == "available":
            continue
        if isinstance(value, dict):
            flat |= _flat(value, f"{key}.")
        elif key == "attacks":
            flat[key] = ", ".join(Call(**call).short() for call in value)
        elif key == "defenses":
            flat[key] = ", ".join(chain_name(tuple(Call(**call) for call in chain)) for chain in value)
        else:
            flat[prefix + key] = str(value)
    return flat
