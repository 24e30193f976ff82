"""Reads the state that a training framework saved into the keys of a plan, so that what ran is accounted for and not what is
remembered of it. Knows JSON only; must not import any framework, and must not compute any ε.

    Opacus     ``json.dump(engine.accountant.state_dict(), file)``: history of (noise multiplier, sampling rate, steps), mechanism
    Flower     ``json.dump(vars(strategy), file)`` of a differential-privacy wrapper, with ``num_rounds`` and
               ``num_available_clients`` beside it
    Trainer    ``trainer_state.json`` of a Hugging Face ``Trainer``; the noise is not in it and must be given
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradleak.core.errors import DataError

_LARGEST = 50_000_000
_MECHANISMS = {"prv": "prv", "rdp": "rdp", "gdp": "gdp_clt"}


def read_saved_state(path: Path) -> dict[str, Any]:
    """The keys of a plan that the file tells; the rest must be given beside it.

    Raises:
        DataError: if the file cannot be read, is no JSON object, or is no state that is known here.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(
                f"{path} has more than {_LARGEST} bytes. A saved accountant is much smaller; give that file."
            )
        state = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read the saved state {path}: {error.strerror}. Give a JSON file.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a JSON file: {error}.") from error
    if isinstance(state, Mapping):
        for key, reader in _READERS.items():
            if key in state:
                return reader(state, path)
    raise DataError(
        f"{path} is no state that is known here. Give the state of an Opacus accountant (history), of a Flower wrapper "
        "(num_sampled_clients), or trainer_state.json (global_step)."
    )


def _opacus(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The steps that the accountant saw. The state does not say how batches were drawn; Poisson, as Opacus takes it to be."""
    history = [_numbers(entry, 3, path) for entry in _list(state["history"], path)]
    claimed: dict[str, Any] = {"sampling": "poisson", "steps": int(sum(steps for _, _, steps in history))}
    if str(state.get("mechanism")) in _MECHANISMS:
        claimed["accountant"] = _MECHANISMS[str(state["mechanism"])]
    table: dict[str, Any] = {"clip": "example", "sampled": "records", "claimed": claimed}
    if not history:
        return table
    rate = max(q for _, q, _ in history)
    noise = {"noise_multipliers": [z for z, _, _ in history], "steps": [int(n) for _, _, n in history]}
    return {**table, **noise, "sampling_rate": rate, "sampling": "poisson" if rate < 1 else "none"}


def _flower(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Whole updates of clients that the server samples without replacement in each round."""
    clients, sampled = _number(state, "num_available_clients", path), _number(state, "num_sampled_clients", path)
    # Flower's noise is on the average of the sampled clients: sensitivity clipping_norm / num_sampled_clients, so z is that of the sum.
    local = "ClientSide" in str(state.get("strategy", "")) or bool(state.get("local"))
    rate = sampled / clients
    return {
        "noise_multiplier": _number(state, "noise_multiplier", path),
        "steps": int(_number(state, "num_rounds", path)),
        "clip": "update",
        "sampled": "clients",
        "sampling": "fixed" if rate < 1 else "none",
        "sampling_rate": rate,
        "records": int(clients),
        "noise_by": "server",
        "view": "server_sees_each_update" if local else "final_model",
    }


def _trainer(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Shuffled epochs: the Trainer draws a permutation in each. Steps that were made, at the rate of one epoch's batches."""
    per_epoch = _number(state, "max_steps", path) / _number(state, "num_train_epochs", path)
    rate = min(1.0, 1.0 / per_epoch)
    table: dict[str, Any] = {"steps": int(_number(state, "global_step", path)), "sampled": "records"}
    if rate < 1:
        table |= {"sampling": "shuffle", "sampling_rate": rate, "last_batch": "kept"}
    return table


_READERS = {"history": _opacus, "num_sampled_clients": _flower, "global_step": _trainer}


def _number(state: Mapping[str, Any], key: str, path: Path) -> float:
    value = state.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise DataError(f"{path} has {key}={value!r}, and a positive number is needed. Add it to the file.")
    return float(value)


def _list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{path} has a history that is no list. Save engine.accountant.state_dict() as JSON.")
    return value


def _numbers(entry: Any, count: int, path: Path) -> tuple[float, float, float]:
    if not isinstance(entry, list) or len(entry) != count or not all(isinstance(x, int | float) for x in entry):
        raise DataError(
            f"{path} has the history entry {entry!r}; three numbers are needed: noise, sampling rate, steps."
        )
    return float(entry[0]), float(entry[1]), float(entry[2])
