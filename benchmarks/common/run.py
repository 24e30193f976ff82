"""Records what a benchmark prints: a page and its data, with the commit, the machine, the seeds and the seconds.

    python -m benchmarks.common.run --compare OLD.json NEW.json      # what moved between two results
    python -m benchmarks.common.run --quick [--results FOLDER]       # a handful of scripts at their smallest, ten seconds

Every script prints inside ``record``; what it prints is the page ``results/<room>/<script>.md``, the same as data is the JSON beside it.
Both are written when the script ends without an error, each as a whole. Must not know any script.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import origin
from benchmarks.common.comparison import compare
from benchmarks.common.page import read_page
from gradleak.core.record import Record
from gradleak.harness.running.store import write_atomically

BENCHMARKS = Path(__file__).resolve().parents[1]
RESULTS = BENCHMARKS / "results"
RECORDED = "Recorded by "
"""How the last line of a recorded page begins."""
UNRECORDED = "a commit and on a machine that were not recorded"
_OWN_OPTIONS = ("results", "page", "command_line")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the two options that all benchmarks share; a script adds its own."""
    reader = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = reader.add_argument_group("where the result goes")
    shared.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of all results (default: benchmarks/results)"
    )
    shared.add_argument(
        "--page", default="", help="another name for the page, for settings that are not the default ones"
    )
    return reader


def parse(reader: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses, and remembers the words, for the command that the page names."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = reader.parse_args(words)
    arguments.command_line = words
    return arguments


@dataclass(slots=True)
class Recording:
    """One run of a script, while it prints.

    Attributes:
        commit: of the code that runs.
        origins: commit and machine of the stored cells that this run prints, as ``place`` has them.
    """

    commit: origin.Commit
    origins: set[str] = field(default_factory=set)

    def place(self) -> str:
        """Commit and machine of what is measured now."""
        return f"commit {self.commit} on {machine_in_words(origin.machine())}"

    def cell(self, file: Path, measure: Callable[[], Mapping[str, Any]] | None) -> dict[str, Any] | None:
        """A cell of a script that resumes: as it is stored in ``file``, or else measured now and stored with commit and machine.

        Args:
            file: JSON, one cell; its folder is made if needed.
            measure: what to store; None where only stored cells are wanted.

        Returns:
            The cell, None if it is neither stored nor to be measured.
        """
        if not file.is_file():
            if measure is None:
                return None
            result = {**measure(), "measured_at": self.place()}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(result).encode())
        stored = json.loads(file.read_text(encoding="utf-8"))
        self.measured_at(stored.get("measured_at"))
        return stored

    def measured_at(self, place: str | None) -> None:
        """Notes where something stored was measured that this run prints; None where that was not recorded."""
        self.origins.add(place or UNRECORDED)

    def audited(self, records: Iterable[Record]) -> None:
        """The same for the records of an audit, which name their commit themselves."""
        for record in records:
            commit = origin.commit_of(record.environment)
            self.measured_at(commit and f"commit {commit} on a machine that was not recorded")


@contextmanager
def record(script: str, arguments: argparse.Namespace, *, seeds: Sequence[int] | None) -> Iterator[Recording]:
    """Writes page and data of all that is printed inside.

    Args:
        script: ``__file__`` of the script.
        arguments: as ``parse`` gave them.
        seeds: every seed that the script's draws start from; empty for a script without chance, None where it writes
            them into its code, each where it is used.
    """
    begun, commit = datetime.now(UTC), origin.commit()
    wall, cpu, load = time.perf_counter(), _cpu_seconds(), os.getloadavg()[0]
    recording, printed = Recording(commit=commit), _Copy(sys.stdout)
    with redirect_stdout(printed):
        yield recording
    text = printed.getvalue().strip("\n")
    target = arguments.results / _room(script) / (arguments.page or Path(script).stem)
    result: dict[str, Any] = {
        "command": _command(script, arguments),
        "commit": commit.name,
        "dirty": commit.dirty,
        "cells_measured_at": sorted(recording.origins),
        "begun": begun.isoformat(timespec="seconds"),
        "seconds": {"wall": round(time.perf_counter() - wall, 2), "cpu": round(_cpu_seconds() - cpu, 2)},
        "load_before": round(load, 2),
        "machine": origin.machine(),
        "versions": origin.versions(),
        "seeds": None if seeds is None else list(seeds),
        "arguments": {k: _plain(v) for k, v in vars(arguments).items() if k not in _OWN_OPTIONS},
        **read_page(text).plain(),
    }
    line = last_line(result)
    print(f"\n{line}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        target.with_name(f"{target.name}.json"), (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode()
    )
    write_atomically(target.with_name(f"{target.name}.md"), f"{text}\n\n{line}\n".encode())


def last_line(result: dict[str, Any]) -> str:
    """The generated line under every page: command, commit, machine, seeds."""
    commit = origin.Commit(name=result["commit"], dirty=result["dirty"])
    machine = machine_in_words(result["machine"])
    parts = [f"{RECORDED}`{result['command']}` at commit {commit}"]
    origins = result["cells_measured_at"]
    if origins and origins != [f"commit {commit} on {machine}"]:
        parts[0] += f" on {machine} from stored cells"
        parts += [f"measured at {place}" for place in origins]
    else:
        parts.append(machine)
    return "; ".join([*parts, seeds_in_words(result["seeds"])]) + "."


def machine_in_words(machine: Mapping[str, Any]) -> str:
    """As "AMD EPYC, 2 cores, 1 thread"."""
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return f"{machine['processor']}, {machine['cores']} cores, {threads}"


def seeds_in_words(seeds: Sequence[int] | None) -> str:
    """As "seeds 0 to 4", "seeds 1, 3, 4", "seed 7", "no seed", or "seeds fixed in the script"."""
    if seeds is None:
        return "seeds fixed in the script"
    if not seeds:
        return "no seed"
    ordered = sorted(set(seeds))
    if len(ordered) == 1:
        return f"seed {ordered[0]}"
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"seeds {ordered[0]} to {ordered[-1]}"
    return "seeds " + ", ".join(map(str, ordered))


class _Copy(io.StringIO):
    """Keeps what is printed and passes it on at once."""

    def __init__(self, screen: Any) -> None:
        super().__init__()
        self._screen = screen

    def write(self, text: str, /) -> int:
        self._screen.write(text)
        return super().write(text)

    def flush(self) -> None:
        self._screen.flush()


def _room(script: str) -> Path:
    return Path(script).resolve().parent.relative_to(BENCHMARKS)


def _command(script: str, arguments: argparse.Namespace) -> str:
    """As it was typed, without the options of this module, which say where the page went."""
    module = ".".join(Path(script).resolve().relative_to(BENCHMARKS.parent).with_suffix("").parts)
    words, skip = [], False
    for word in arguments.command_line:
        if skip or word in ("--results", "--page"):
            skip = not skip
        elif not word.startswith(("--results=", "--page=")):
            words.append(str(_plain(Path(word))) if word.startswith("/") else word)
    return shlex.join(["python", "-m", module, *words])


def _plain(value: Any) -> Any:
    """As JSON holds it. Of a path outside the working folder only the name is kept: a result names no one's folders."""
    if isinstance(value, Path):
        return value.name if value.is_absolute() else value.as_posix()
    if isinstance(value, (list, tuple, range)):
        return [_plain(part) for part in value]
    return value


def _cpu_seconds() -> float:
    """User and system seconds of this process and of those it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main(argv: Sequence[str] | None = None) -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verb = reader.add_mutually_exclusive_group(required=True)
    verb.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    verb.add_argument("--quick", action="store_true")
    reader.add_argument("--results", type=Path, default=Path("runs/quick"), help="of --quick")
    asked = reader.parse_args(argv)
    if asked.quick:
        # Knows the scripts, which know this module.
        from benchmarks.common.quick import quick

        quick(asked.results)
        return
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in asked.compare)
    print(f"old: {last_line(old)}\nnew: {last_line(new)}")
    print("\n".join(compare(old, new)) or "nothing moved")


if __name__ == "__main__":
    main()
