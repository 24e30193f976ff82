"""One knob of one defense, swept. A frontier is an ordinary audit with one chain per value of the knob, and beside it
the accuracy of a short training under each chain. Every training is a line of its own, so that a killed run resumes.
Must not know how points are compared or shown.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gradleak.core.errors import DataError, PlanChangedError, SpecError
from gradleak.harness.request.plan import Call, chain_name
from gradleak.harness.request.prepare import read_chain
from gradleak.harness.running.store import write_atomically
from gradleak.harness.utility.training import Schedule, Trained, train
from gradleak.mechanics.client.trainer import LocalTraining

HEADER, LINES = "frontier.json", "utility.jsonl"
PLACEHOLDER = "{knob}"


class Frontier(BaseModel):
    """What is swept and how accuracy is measured: everything that changes the lines of ``utility.jsonl``.

    Attributes:
        template: one chain of defenses with ``{knob}`` in it; knobs: what stands there in turn, as typed.
        task: what the tiny model learns; the other numbers are those of ``utility.Schedule``.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    template: str
    knobs: tuple[str, ...]
    task: str
    rounds: int
    clients: int
    batch_size: int
    lr: float
    seeds: int

    @staticmethod
    def of(template: str, knobs: tuple[str, ...], task: str, schedule: Schedule) -> Frontier:
        return Frontier(template=template, knobs=knobs, task=task, **asdict(schedule))

    def schedule(self) -> Schedule:
        return Schedule(
            rounds=self.rounds, clients=self.clients, batch_size=self.batch_size, lr=self.lr, seeds=self.seeds
        )

    def chains(self) -> tuple[tuple[str, tuple[Call, ...]], ...]:
        """Every knob with its chain of defenses, all settings written out."""
        return tuple((knob, read_chain(self.template.replace(PLACEHOLDER, knob))) for knob in self.knobs)

    def by_name(self) -> dict[str, str]:
        """Name of a chain → its knob."""
        return {chain_name(chain): knob for knob, chain in self.chains()}


def read_knobs(template: str, text: str) -> tuple[str, ...]:
    """Reads ``0.001,0.01,0.1`` for a template with ``{knob}`` in it.

    Raises:
        SpecError: if the template has no place for a knob or a chain made of it cannot be read; if there is no value, one
            is not a finite number, or two are equal.
    """
    if PLACEHOLDER not in template:
        raise SpecError(
            f"--frontier {template!r} has no {PLACEHOLDER}, so there is nothing to sweep. Write it where a number stands, "
            f"for example 'gaussian(relative_std={PLACEHOLDER})'."
        )
    knobs = tuple(part.strip() for part in text.split(",") if part.strip())
    if not knobs:
        raise SpecError("--knobs holds no value. Write numbers separated by commas, such as 0.001,0.01,0.1.")
    for knob in knobs:
        if not _is_number(knob):
            raise SpecError(
                f"The knob {knob!r} is not a finite number. Write --knobs as numbers separated by commas, "
                "such as 0.001,0.01,0.1."
            )
    if len({float(knob) for knob in knobs}) < len(knobs):
        raise SpecError(f"--knobs {text} holds a number twice. Leave one out.")
    for knob in knobs:
        read_chain(template.replace(PLACEHOLDER, knob))
    return knobs


def check_unchanged(folder: Path, frontier: Frontier) -> None:
    """Raises ``PlanChangedError`` if the folder holds a frontier of other settings."""
    there = read_header(folder)
    if there is None or there == frontier:
        return
    old, new = there.model_dump(), frontier.model_dump()
    changes = "; ".join(f"{key}: {old[key]} → {new[key]}" for key in new if old[key] != new[key])
    raise PlanChangedError(
        f"{folder} holds another frontier. Changed: {changes}. Give --out a new folder, or repeat the old command."
    )


def measure(
    folder: Path,
    frontier: Frontier,
    training: LocalTraining,
    seed: int,
    heard: Callable[[Trained, int, int], None] = lambda trained, done, total: None,
) -> None:
    """Trains under every chain, and under none, as often as there are seeds, leaving out what has a line already.

    Args:
        folder: of an audit, held by the caller (``store.RunFolder``), so that there is one writer.
        seed: first of ``frontier.seeds`` consecutive seeds, the same for every chain.
    """
    check_unchanged(folder, frontier)
    lines, torn = _parse(folder / LINES)
    if torn:
        write_atomically(folder / LINES, "".join(_line(each) for each in lines).encode())
    write_atomically(folder / HEADER, (frontier.model_dump_json(indent=2) + "\n").encode())
    done = {(each.defense, each.seed) for each in lines}
    wanted: list[tuple[Sequence[Call], int]] = [
        (chain, seed + place)
        for chain in ((), *(chain for _, chain in frontier.chains()))
        for place in range(frontier.seeds)
    ]
    with (folder / LINES).open("a", encoding="utf-8") as file:
        for place, (chain, own_seed) in enumerate(wanted):
            if (chain_name(tuple(chain)), own_seed) in done:
                continue
            trained = train(frontier.task, chain, own_seed, frontier.schedule(), training)
            file.write(_line(trained))
            file.flush()
            os.fsync(file.fileno())
            heard(trained, place + 1, len(wanted))


def read_header(folder: Path) -> Frontier | None:
    """What a folder's frontier swept; None if it holds none. Raises ``DataError`` if the file cannot be read."""
    path = folder / HEADER
    if not path.is_file():
        return None
    try:
        # Arrays of JSON become tuples only where the reader may be lenient about the container.
        return Frontier.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise DataError(
            f"{path} cannot be read: {error.errors()[0]['msg']}. Run the frontier in a new folder."
        ) from error


def read_trained(folder: Path) -> tuple[Trained, ...]:
    """The complete trainings of a folder. Raises ``DataError`` if a line is not one."""
    return tuple(_parse(folder / LINES)[0])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _line(trained: Trained) -> str:
    return json.dumps(asdict(trained), allow_nan=False, separators=(",", ":")) + "\n"


def _parse(path: Path) -> tuple[list[Trained], bool]:
    """Trainings of all complete lines, and whether a torn line followed them."""
    if not path.is_file():
        return [], False
    *complete, rest = path.read_text(encoding="utf-8").split("\n")
    try:
        plain = [json.loads(line) for line in complete]
        return [Trained(**{**each, "losses": tuple(each["losses"])}) for each in plain], bool(rest)
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} holds a line that is no training: {error}. Run the frontier in a new folder."
        ) from error
