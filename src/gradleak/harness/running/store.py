"""A run folder survives a kill at any moment. Records are appended and flushed to the disk one by one, tensors are
there before the record that speaks of them, and one writer holds the folder. Must not know what the records mean.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from safetensors.torch import save
from torch import Tensor

from gradleak.core.errors import DataError, PlanChangedError, UsageError
from gradleak.core.record import Record
from gradleak.harness.request.plan import Plan

PLAN, RECORDS, TENSORS, LOCK = "plan.json", "records.jsonl", "tensors", ".lock"


class RunFolder:
    """A run folder opened for writing; use it as a context manager.

    Raises:
        PlanChangedError: if the folder holds another plan; the message names what differs.
        UsageError: if another process writes to it, or it holds something else than a run.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        _check_is_run(path)
        path.mkdir(parents=True, exist_ok=True)
        self._lock = acquire(path / LOCK)
        try:
            _check_plan(path / PLAN, plan)
            self.records = list(_recover(path / RECORDS))
            write_atomically(path / PLAN, plan.to_json().encode())
            (path / TENSORS).mkdir(exist_ok=True)
            self._file = (path / RECORDS).open("a", encoding="utf-8")
        except BaseException:
            self._lock.close()
            raise

    @property
    def done(self) -> frozenset[str]:
        """The ids of the cells that have a record."""
        return frozenset(record.cell for record in self.records)

    def append(self, record: Record, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Stores a cell: its tensors first, then its record. A kill in between leaves the cell undone."""
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(metadata))
        write_atomically(self.path / TENSORS / f"{record.cell}.safetensors", content)
        self._file.write(record.to_json() + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def replace(self, records: list[Record]) -> None:
        """Writes all records anew, atomically, for findings that need every record to be there."""
        self._file.close()
        text = "".join(record.to_json() + "\n" for record in records)
        write_atomically(self.path / RECORDS, text.encode())
        self._file = (self.path / RECORDS).open("a", encoding="utf-8")
        self.records = records

    def close(self) -> None:
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_plan(path: Path) -> Plan:
    """The plan of a run folder. Raises ``DataError`` if there is none."""
    if not (path / PLAN).is_file():
        raise DataError(
            f"{path} is not a run folder: it holds no {PLAN}. Give a folder that `gradleak audit --out` wrote."
        )
    return Plan.from_json((path / PLAN).read_text(encoding="utf-8"))


def read_records(path: Path) -> tuple[Record, ...]:
    """The complete records of a run folder, without touching it. Raises ``DataError`` if there are none."""
    read_plan(path)
    file = path / RECORDS
    records = tuple(_parse(file)[0]) if file.is_file() else ()
    if not records:
        raise DataError(f"{path} holds no complete record yet. Run `gradleak audit` with --out {path} to its end.")
    return records


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is either the old or the new one, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _check_is_run(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(
            f"{path} is a file; a run is a folder. Give --out the name of a new or of an earlier run folder."
        )
    if path.is_dir() and not (path / PLAN).exists() and any(entry.name != LOCK for entry in path.iterdir()):
        raise UsageError(
            f"{path} holds other files and no {PLAN}, so it is no run folder. Give --out an empty or new folder."
        )


def acquire(path: Path) -> TextIO:
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"Another process is writing to {path.parent}. Wait until it ends, or give this run another --out folder."
        ) from None
    return file


def _check_plan(path: Path, plan: Plan) -> None:
    if not path.exists():
        return
    there = Plan.from_json(path.read_text(encoding="utf-8"))
    if there.fingerprint() != plan.fingerprint():
        changes = "; ".join(plan.differences(there)) or "plan version"
        raise PlanChangedError(
            f"{path.parent} holds a run of another plan. Changed: {changes}. "
            "Give --out a new folder, or repeat the command with the old settings to resume."
        )


def _recover(path: Path) -> list[Record]:
    """The complete records. A torn last line, from a kill in the middle of a write, is cut off."""
    if not path.exists():
        return []
    records, torn = _parse(path)
    if torn:
        write_atomically(path, "".join(record.to_json() + "\n" for record in records).encode())
    return records


def _parse(path: Path) -> tuple[list[Record], bool]:
    """Records of all complete lines, and whether a torn line followed them."""
    lines = path.read_bytes().split(b"\n")
    tail = lines.pop()
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record.from_json(line.decode("utf-8", errors="replace")))
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    return records, bool(tail)
