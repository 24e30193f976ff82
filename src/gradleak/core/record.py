"""One cell of an audit as one line of JSON, complete enough to run the cell again. The parts are typed, so that a misspelt key is
found before it runs, and ``record_schema`` publishes them. Must not hold private data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NotRequired

from typing_extensions import TypedDict

from gradleak.core.errors import DataError

SCHEMA_VERSION = 1


class Call(TypedDict):
    """A method with every argument, defaults included."""

    type: str
    args: dict[str, str | int | float | bool | None]


class Data(TypedDict):
    """Where the private records came from, by content and not by value."""

    name: str
    fingerprint: str
    size: int


class Scenario(TypedDict):
    """What was audited. ``share`` is the local training; ``parameters`` counts all weights."""

    model: str
    modality: str
    loss: str
    share: Call
    batch_size: int
    data: Data
    max_length: int | None
    parameters: int
    tokenizer: str | None


class Knowledge(TypedDict):
    """What the adversary knew, and which of it this attack read."""

    threat: str
    place: NotRequired[str]
    facts: list[str]
    read: NotRequired[list[str]]


class Proposed(TypedDict):
    """Tokens or records that the attack proposed, and how many of them are wrong."""

    proposed: int
    wrong: int
    wrong_records: int


class Status(TypedDict):
    """How the attack ended, and what it says of itself.

    ``name`` and ``sentence`` are those of ``gradleak.Status``; ``objective`` is the attack's own, smaller being better, and
    ``objective_at_truth`` the same at the private batch; ``certificate`` is the relative error of the recomputed update,
    ``worst_tensors`` the tensors that it misses most; ``confidence`` is what the attack claims of its own tokens; ``adapted`` names
    the stages that it took into account; ``trace`` holds pairs of iteration and objective; ``statistics`` is the attack's own.
    """

    name: str
    sentence: str
    message: str
    objective: float | None
    objective_at_truth: float | None
    certificate: float | None
    worst_tensors: NotRequired[list[tuple[str, float]]]
    proposed: NotRequired[Proposed | None]
    confidence: NotRequired[dict[str, float] | None]
    adapted: list[str]
    trace: list[list[float]]
    statistics: dict[str, float]


class Score(TypedDict):
    """Mean of a metric over ``n`` private records with its interval; ``chance`` is its value for guessing, where that is known."""

    value: float
    low: float
    high: float
    chance: float | None
    n: int
    higher_is_better: bool


class Privacy(TypedDict):
    """The claim about the release: ε at δ, None being no guarantee, with everything it rests on in words."""

    epsilon: float | None
    epsilon_replace: NotRequired[float | None]
    delta: float
    mechanism: str
    sensitivity: NotRequired[str]
    sampling: NotRequired[str]
    composition: NotRequired[str]
    relation: str
    view: str
    unit: str
    theorem: NotRequired[str]
    lower: NotRequired[float | None]
    notes: NotRequired[list[str]]
    statement: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One cell: scenario × defense × attack × repeat.

    Attributes:
        cell: its identifier within the run; seed: of its draws; repeat: which batch it attacked.
        scores: metric name → score of the attack; baseline: the same of the best guess without the update.
        flags: names of what a reader must know before believing the cell.
        environment: versions, commit, device, number format and attention kernel.
        seconds: of the update, of the attack and of the scores.
    """

    cell: str
    scenario: Scenario
    attack: Call
    defenses: list[Call]
    knowledge: Knowledge
    seed: int
    repeat: int
    status: Status
    scores: Mapping[str, Score]
    baseline: Mapping[str, Score]
    flags: list[str]
    privacy: Privacy
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


def record_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a line of ``records.jsonl``: what is required is in every record of this version."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Record).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
