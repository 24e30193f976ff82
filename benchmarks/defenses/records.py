"""The lines that ``sweep.py`` writes: one measured cell each. Imported by it and by ``table.py``; prints nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gradleak.harness.utility.training import Interval, interval

FILE = Path(__file__).parents[1] / "results" / "defenses" / "sweep.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One measure of one defense with one seed.

    Attributes:
        measure: pictures (PSNR in decibels), texts (token recall), rank, topics or digits (accuracy of a short training).
        records: private records in the batch; net: what was attacked or trained.
        values: by name, such as ``L2, informed``; seconds: processor time.
        reason: why there is no value; empty if there is one.
        commit, machine: where it was measured; empty in lines that are older than this field.
    """

    measure: str
    defense: str
    seed: int
    records: int = 1
    net: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""
    commit: str = ""
    machine: str = ""

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        return self.measure, self.defense, self.seed, self.records, self.net


def read(path: Path = FILE) -> list[Cell]:
    """All complete lines of the file."""
    if not path.is_file():
        return []
    return [Cell(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def append(cell: Cell, path: Path = FILE) -> None:
    """Adds one line; a value that is no number is left out."""
    values = {name: float(f"{value:.5g}") for name, value in cell.values.items() if math.isfinite(value)}
    line = json.dumps({**asdict(cell), "values": values, "seconds": round(cell.seconds, 3)}, separators=(",", ":"))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def over_seeds(cells: Iterable[Cell], name: str) -> Interval | None:
    """The mean of one value over seeds with Student's 95 % interval; None if no cell holds it."""
    found = [cell.values[name] for cell in cells if name in cell.values]
    return interval(found) if found else None


def text(found: Interval | None, digits: int = 1, *, within: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """``12.3 [10.1, 14.5]``, the interval cut to the values that can be; or a dash."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:.{digits}f}"
    low, high = max(found.low, within[0]), min(found.high, within[1])
    return f"{found.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
