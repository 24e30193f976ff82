"""Why: one cell of an audit as one line of JSON, complete enough to run the cell again. Must not hold private data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from gradleak.core.errors import DataError

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One cell: scenario × defense × attack × repeat.

    Attributes:
        scenario: model, data fingerprint, batch size, loss, share: plain data.
        attack: ``{"type", "args"}``; defenses: a list of the same.
        knowledge: ``{"threat": name, "facts": [...]}``.
        status: ``{"name", "message", "objective", "objective_at_truth", "certificate", "adapted", "trace", "statistics"}``.
        scores, baseline: metric name → ``Score.to_plain()``.
        privacy: the claim about the release; see ``gradleak.privacy``.
        seconds: ``{"update", "attack", "score"}``.
    """

    cell: str
    scenario: Mapping[str, Any]
    attack: Mapping[str, Any]
    defenses: list[Mapping[str, Any]]
    knowledge: Mapping[str, Any]
    seed: int
    repeat: int
    status: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]]
    baseline: Mapping[str, Mapping[str, Any]]
    flags: list[str]
    privacy: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: Mapping[str, float]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> Record:
        """Reads one line. Raises ``DataError`` if the line is not a record of this schema version."""
        try:
            plain = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"Not a record: {error}.") from error
        version = plain.get("schema_version") if isinstance(plain, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"This record has schema version {version}, this gradleak reads {SCHEMA_VERSION}. Run the audit again."
            )
        known = {f.name for f in fields(Record)}
        if set(plain) != known:
            raise DataError(f"This record lacks or adds the keys {sorted(known ^ set(plain))}. Run the audit again.")
        return Record(**plain)

    def defense_name(self) -> str:
        """The defenses as they are written on the command line, or ``"none"``."""
        from gradleak.core.specs import Spec

        return "+".join(str(Spec(type=d["type"], args=_given(d["args"]))) for d in self.defenses) or "none"

    def attack_name(self) -> str:
        return str(self.attack["type"])


def _given(args: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in args.items() if value is not None}
