"""Why: a run folder as the report reads it: the plan and the records, nothing private."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradleak.core.errors import DataError
from gradleak.core.record import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    path: Path
    plan: Mapping[str, Any]
    records: tuple[Record, ...]


def read(path: Path) -> Run:
    """Reads ``plan.json`` and ``records.jsonl`` of a run folder.

    Raises:
        DataError: if the folder holds no run, or a file cannot be read; a last line without its end is left out,
            because an interrupted run may stop in the middle of a line.
    """
    plan, lines = path / "plan.json", path / "records.jsonl"
    if not lines.is_file():
        raise DataError(f"{path} holds no records.jsonl. Give the folder that `gradleak audit --out` wrote.")
    return Run(path=path, plan=_plan(plan), records=_records(lines))


def _plan(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError(f"{path} is missing. Give the folder that `gradleak audit --out` wrote, complete.")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}. Run the audit again into a new folder.") from error
    if not isinstance(plan, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(plan).__name__}. Run the audit again.")
    return plan


def _records(path: Path) -> tuple[Record, ...]:
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return tuple(Record.from_json(line) for line in whole.split("\n") if line.strip())
