"""The chain of one prior survives a kill: what was asked for stands in ``bounds-PRIOR.json``, every noise level is one line of
``bounds-PRIOR.jsonl``, written when it is whole. Must not know what a line means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradleak.core.errors import DataError, PlanChangedError
from gradleak.harness.running.store import LOCK, acquire, write_atomically

SCHEMA_VERSION = 2


class BoundFolder:
    """The chain of one prior, opened for writing; use it as a context manager.

    Attributes:
        facts: of the candidates, once they are known; None before.
        steps: noise levels that are done, in the order in which they were written.

    Raises:
        PlanChangedError: if the folder holds a chain of this prior for another plan; the message names what differs.
        UsageError: if another process writes to the folder.
        DataError: if a line cannot be read.
    """

    def __init__(self, folder: Path, prior: str, plan: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = acquire(folder / LOCK)
        try:
            header, self._lines = _paths(folder, prior)
            plan = json.loads(json.dumps(plan, allow_nan=False))
            _check_unchanged(header, plan)
            self.facts, self.steps, torn = _read_lines(self._lines)
            if torn:
                kept = [
                    *([] if self.facts is None else [{"candidates": self.facts}]),
                    *({"step": s} for s in self.steps),
                ]
                write_atomically(self._lines, "".join(map(_line, kept)).encode())
            write_atomically(header, (json.dumps({"schema_version": SCHEMA_VERSION, **plan}, indent=2) + "\n").encode())
        except BaseException:
            self._lock.close()
            raise

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)
        self._append({"candidates": self.facts})

    def write_step(self, step: Mapping[str, Any]) -> None:
        self.steps.append(dict(step))
        self._append({"step": self.steps[-1]})

    def _append(self, plain: Mapping[str, Any]) -> None:
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(_line(plain))
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()


def read_bounds(folder: Path) -> tuple[dict[str, Any], ...]:
    """The chains of a folder by the prior's name, as far as they got; empty if there is none.

    Raises:
        DataError: if a file cannot be read or has another schema version.
    """
    found = []
    for header in sorted(folder.glob("bounds-*.json")):
        plan = _read_header(header)
        facts, steps, _ = _read_lines(header.with_suffix(".jsonl"))
        if facts is not None and steps:
            prior = {**plan["prior"], **facts["prior"]}
            found.append({**plan, **facts, "prior": prior, "steps": steps})
    return tuple(found)


def _paths(folder: Path, prior: str) -> tuple[Path, Path]:
    return folder / f"bounds-{prior}.json", folder / f"bounds-{prior}.jsonl"


def _read_header(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}. Run `gradleak bound` in a new folder.") from error
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {version}, this gradleak reads {SCHEMA_VERSION}. Run `gradleak bound` in a new folder."
        )
    return plain


def _check_unchanged(header: Path, plan: Mapping[str, Any]) -> None:
    if not header.is_file():
        return
    there, wanted = _flat(_read_header(header)), _flat({"schema_version": SCHEMA_VERSION, **plan})
    changes = "; ".join(
        f"{key}: {there.get(key)} → {wanted.get(key)}"
        for key in dict.fromkeys((*there, *wanted))
        # The machine may change between two halves of a run; what was asked for may not.
        if there.get(key) != wanted.get(key) and not key.startswith("environment.")
    )
    if changes:
        raise PlanChangedError(
            f"{header} holds bounds of another plan. Changed: {changes}. Give --out a new folder, or repeat the old command to "
            "go on."
        )


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in plain.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _line(plain: Mapping[str, Any]) -> str:
    return json.dumps(plain, allow_nan=False, separators=(",", ":")) + "\n"


def _read_lines(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]], bool]:
    """Facts, steps, and whether a torn line followed the complete ones."""
    if not path.is_file():
        return None, [], False
    *complete, rest = path.read_text(encoding="utf-8").split("\n")
    try:
        lines = [json.loads(line) for line in complete]
        facts = next((line["candidates"] for line in lines if "candidates" in line), None)
        return facts, [line["step"] for line in lines if "step" in line], bool(rest)
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(f"{path} holds a line that is no noise level: {error}. Run it in a new folder.") from error
