"""What an auditor saw, read from a file and held against a plan: releases of one step, or guesses about the canaries of one run. Must
not know the command line.

    *.safetensors  tensors released_with, released_without ``[n P]``, reference, canary ``[P]``; metadata ``clip``: C
    *.json         correct, guesses, canaries: whole numbers
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradleak.core.errors import DataError, UsageError
from gradleak.privacy.auditing import one_run
from gradleak.privacy.auditing.one_step import audit_step
from gradleak.privacy.auditing.releases import audit_releases
from gradleak.privacy.plan.plan import Plan

_LARGEST = 4_000_000_000
_TENSORS = ("released_with", "released_without", "reference", "canary")


def audit(path: Path, plan: Plan, epsilon: float, *, significance: float = 0.01) -> dict[str, Any]:
    """Holds the evidence against the plan.

    Args:
        path: of the evidence. plan: the claim. epsilon: what it guarantees.
        significance: a claim that holds is refuted with probability at most this, by releases or by guesses.

    Returns:
        Plain data: ``refuted``; for releases ``checks``, ``noise_ratio``, ``sensitivity``, ``mu_lower`` beside ``mu_claimed``; for guesses
        ``epsilon_lower`` for any mechanism and ``gaussian_epsilon_lower`` for the Gaussian family.

    Raises:
        DataError: if the file cannot be read or lacks something.
        UsageError: for releases of a plan whose steps have several noise levels, or counts that cannot be.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}. Give the evidence as .safetensors (releases) or .json (guesses).")
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} has more than {_LARGEST} bytes. Give fewer releases.")
    return (
        _guesses(path, plan, epsilon, significance) if path.suffix == ".json" else _releases(path, plan, significance)
    )


def _releases(path: Path, plan: Plan, significance: float) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    levels = {phase.noise_multiplier for phase in plan.phases}
    if len(levels) > 1 or plan.mechanism != "gaussian" or 0.0 in levels:
        raise UsageError("Releases are audited against Gaussian noise of one level. Give the plan of that one step.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            clip = (file.metadata() or {}).get("clip")
            held = set(file.keys())
            arrays = {name: file.get_tensor(name) for name in _TENSORS if name in held}
    except SafetensorError as error:
        raise DataError(f"{path} is no safetensors file: {error}.") from error
    missing = [name for name in _TENSORS if name not in arrays]
    if missing or clip is None:
        raise DataError(
            f"{path} lacks {', '.join(missing + ['metadata clip'] * (clip is None))}. Save all of {', '.join(_TENSORS)}."
        )
    try:
        norm, z = float(clip), levels.pop()
    except ValueError as error:
        raise DataError(f"{path} has the metadata clip={clip!r}. It must be a number, C.") from error
    # Both audits at half of the significance.
    result = audit_releases(**arrays, clip=norm, noise_multiplier=z, significance=significance / 2)
    step = audit_step(**arrays, clip=norm, noise_multiplier=z, significance=significance / 2)
    return {
        "refuted": result.refuted or step.violated,
        "checks": [asdict(check) for check in result.checks],
        "noise_ratio": result.noise_ratio,
        "sensitivity": result.sensitivity,
        "mu_lower": step.mu_lower,
        "mu_claimed": step.mu_claimed,
        "significance": significance,
    }


def _guesses(path: Path, plan: Plan, epsilon: float, significance: float) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a JSON file: {error}.") from error
    names = ("correct", "guesses", "canaries")
    if not isinstance(table, dict) or any(type(table.get(name)) is not int for name in names):
        raise DataError(f"{path} must hold the whole numbers correct, guesses and canaries.")
    correct, guesses, canaries = (table[name] for name in names)
    settings = {"significance": significance / 2, "delta": plan.delta}
    any_mechanism = one_run.epsilon(correct, guesses, canaries, **settings)
    gaussian = one_run.gaussian_epsilon(correct, guesses, canaries, **settings)
    # The Gaussian family is an assumption of its own: it refutes only where it is the claim, that is for a Gaussian plan.
    bound = max(any_mechanism, gaussian) if plan.mechanism == "gaussian" and plan.sampling == "none" else any_mechanism
    return {
        "refuted": bound > epsilon,
        "epsilon_lower": any_mechanism,
        "gaussian_epsilon_lower": gaussian,
        "significance": significance,
    }
