"""A record is one line of JSON that reads back as itself, or is refused with the reason."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import gradleak
from gradleak.core.errors import DataError
from gradleak.core.record import SCHEMA_VERSION, Record, record_schema

pytestmark = pytest.mark.contract


def record(**changes: Any) -> Record:
    plain: dict[str, Any] = {
        "cell": "a/b",
        "scenario": {"model": "tiny"},
        "attack": {"type": "tag", "args": {"alpha": 0.01}},
        "defenses": [],
        "knowledge": {"threat": "honest_server", "facts": []},
        "seed": 1,
        "repeat": 0,
        "status": {"name": "CONVERGED"},
        "scores": {},
        "baseline": {},
        "flags": [],
        "privacy": {},
        "environment": {},
        "seconds": {"update": 0.5},
    }
    return Record(**(plain | changes))


def test_a_line_reads_back_as_the_record() -> None:
    assert Record.from_json(record().to_json()) == record()
    assert "\n" not in record().to_json() and json.loads(record().to_json())["schema_version"] == SCHEMA_VERSION


def test_what_is_no_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        record(seconds={"update": float("nan")}).to_json()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Not a record"),
        ("[1]", "schema version None"),
        (json.dumps(asdict(record()) | {"schema_version": 99}), "schema version 99.*reads 1"),
        (json.dumps(asdict(record()) | {"more": 1}), r"lacks or adds the keys \['more'\]"),
        (json.dumps({k: v for k, v in asdict(record()).items() if k != "seed"}), r"\['seed'\]"),
    ],
)
def test_another_line_is_refused(line: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Record.from_json(line)


def test_defenses_are_named_as_they_are_typed() -> None:
    clip, noise = {"type": "clip", "args": {"max_norm": 1.0}}, {"type": "gaussian", "args": {"std": None}}
    assert record().defense_name() == "none" and record().attack_name() == "tag"
    name = record(defenses=[clip, noise]).defense_name()
    assert (name.startswith("clip(max_norm=1") and name.endswith("+gaussian()")) or name.endswith("+gaussian")


def test_the_published_schema_is_that_of_the_code() -> None:
    page = Path(__file__).parents[2] / "docs" / "record.schema.json"
    assert json.loads(page.read_text()) == record_schema(), "gradleak schema record > docs/record.schema.json"


def test_what_an_audit_writes_has_the_published_types_and_no_other_key() -> None:
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    audit = gradleak.audit(
        "random:bert",
        ["a private text"],
        attacks="token_support,dlg(iterations=2),sign_span",
        defenses=["clip(max_norm=1.0)+gaussian(noise_multiplier=1.0)"],
        settings=tiny,
    )
    schema = record_schema()
    for record in audit.records:
        plain = json.loads(record.to_json())
        assert asdict(TypeAdapter(Record).validate_json(record.to_json(), strict=True)) == asdict(
            Record.from_json(json.dumps(plain))
        )
        for part, name in (
            ("status", "Status"),
            ("privacy", "Privacy"),
            ("scenario", "Scenario"),
            ("knowledge", "Knowledge"),
        ):
            assert set(plain[part]) == set(schema["$defs"][name]["properties"])
        for score in (*plain["scores"].values(), *plain["baseline"].values()):
            assert set(score) == set(schema["$defs"]["Score"]["required"])
