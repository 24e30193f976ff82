"""Why: ``--share`` is written like every other method, and means a ``LocalTraining``. Must not train."""

from __future__ import annotations

import dataclasses
from typing import Any

from gradleak.core.errors import SpecError, UnknownNameError
from gradleak.core.specs import Spec, build, parse_chain
from gradleak.mechanics.training import LocalTraining


def parse_share(text: str) -> LocalTraining:
    """Reads ``gradient``, ``gradient(dtype=bf16, dropout=true)`` or ``delta(steps=5, lr=0.001, optimizer=sgd)``.

    Raises:
        SpecError, UnknownNameError: if it is neither, or an argument is unknown or out of range.
    """
    specs = parse_chain(text)
    if len(specs) != 1:
        raise SpecError(f"--share takes one call, got {text!r}. Defenses on top of it go into --defenses.")
    if specs[0].type not in {"gradient", "delta"}:
        raise UnknownNameError("share", specs[0].type, ("gradient", "delta"))
    if "share" in specs[0].args:
        raise SpecError(f"{specs[0].type}: unknown argument 'share'.")
    return build(LocalTraining, {"share": specs[0].type, **specs[0].args})


def share_spec(training: LocalTraining) -> Spec:
    """The inverse: ``delta(steps=5, ...)`` with every setting spelled out."""
    plain: dict[str, Any] = dataclasses.asdict(training)
    return Spec(type=plain.pop("share"), args=plain)
