"""A plan as a TOML file, or as the options of the command line: the keys are the fields of ``Plan``, and a
misspelt key is an error that names the nearest one. A sampling rate without a way of sampling means Poisson; the table says so.

    noise_multiplier = 1.0          # or a schedule: noise_multipliers = [15.0, 10.0], steps = [50, 50]
    steps = 1000
    sampling = "poisson"
    sampling_rate = 0.01

    [claimed]                       # what somebody says about the plan, for the linter
    epsilon = 1.8

Must not know the accountant.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradleak.core.errors import DataError, UnknownNameError, UsageError
from gradleak.privacy.plan.plan import Claimed, Phase, Plan

_NOISE = ("noise_multiplier", "noise_multipliers", "steps")
_FIELDS = tuple(f.name for f in dataclasses.fields(Plan) if f.name not in ("phases", "claimed"))
KEYS = (*_NOISE, *_FIELDS, "claimed")


def read_plan(path: Path) -> dict[str, Any]:
    """The table of a TOML file. Raises ``DataError`` if it cannot be read, ``UnknownNameError`` for a key that no plan has."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read the plan {path}: {error.strerror}. Give a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a TOML file: {error}. Write lines such as noise_multiplier = 1.0.") from error
    return table


def make_plan(table: Mapping[str, Any]) -> Plan:
    """The plan of a table of keys.

    Raises:
        UnknownNameError: for a key that no plan has, with the nearest one.
        UsageError: for a missing key, a value of the wrong type or out of range.
    """
    for key in table:
        if key not in KEYS:
            raise UnknownNameError("key of a plan", key, KEYS)
    fields = {key: _typed(key, table[key], Plan) for key in _FIELDS if key in table}
    if fields.get("sampling_rate", 1.0) != 1.0:
        fields.setdefault("sampling", "poisson")
    return Plan(phases=_phases(table), claimed=_claimed(table.get("claimed")), **fields)


def _phases(table: Mapping[str, Any]) -> tuple[Phase, ...]:
    levels, steps = table.get("noise_multipliers"), table.get("steps", 1)
    if levels is None:
        if "noise_multiplier" not in table:
            raise UsageError(
                "The plan has no noise_multiplier. Give --noise-multiplier, or the key in the plan file; 0 is no noise."
            )
        levels = [table["noise_multiplier"]]
    elif "noise_multiplier" in table:
        raise UsageError("The plan has noise_multiplier and noise_multipliers. Keep one of them.")
    counts = steps if isinstance(steps, list) else [steps] if len(_listed("noise_multipliers", levels)) == 1 else steps
    if not isinstance(counts, list) or len(counts) != len(levels):
        raise UsageError(
            f"A schedule of {len(levels)} noise multipliers needs as many entries in steps, got steps={steps}. "
            "Write for example noise_multipliers = [15.0, 10.0] and steps = [50, 50]."
        )
    return tuple(
        Phase(noise_multiplier=_number("noise_multiplier", z), steps=_whole("steps", n))
        for z, n in zip(levels, counts, strict=True)
    )


def _claimed(table: Any) -> Claimed | None:
    if table is None:
        return None
    known = tuple(f.name for f in dataclasses.fields(Claimed))
    if not isinstance(table, Mapping):
        raise UsageError(f"claimed={table!r} must be a table: a line [claimed], then keys such as epsilon = 1.8.")
    for key in table:
        if key not in known:
            raise UnknownNameError("key of [claimed]", key, known)
    return Claimed(**{key: _typed(key, value, Claimed) for key, value in table.items()}) if table else None


def _typed(key: str, value: Any, owner: type) -> Any:
    annotation = str(next(f.type for f in dataclasses.fields(owner) if f.name == key))
    if annotation.startswith("float"):
        return _number(key, value)
    if annotation.startswith("int"):
        return _whole(key, value)
    if annotation.startswith("tuple"):
        return tuple(str(name) for name in _listed(key, value))
    if not isinstance(value, str):
        raise UsageError(f"{key}={value!r} must be a word in quotes.")
    return value.replace("-", "_")


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{key}={value!r} must be a number.")
    return float(value)


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise UsageError(f"{key}={value!r} must be a whole number.")
    return int(value)


def _listed(key: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{key}={value!r} must be a list in brackets.")
    return value
