"""``--share`` is written like every other method, and means a ``LocalTraining``. Must not train."""

from __future__ import annotations

import dataclasses
from typing import Any

from gradleak.core.errors import SpecError, UnknownNameError
from gradleak.core.specs import Spec, build, parse_chain
from gradleak.mechanics.client.trainer import LocalTraining
from gradleak.models import Subject, with_lora

SHARES = ("gradient", "delta", "lora")
_LORA = ("rank", "alpha", "targets", "b_std")


def parse_share(text: str) -> LocalTraining:
    """Reads ``gradient``, ``gradient(dtype=bf16, dropout=true)``, ``delta(steps=5, lr=0.001, optimizer=sgd)``,
    ``delta(epochs=10, mini_batch=4, momentum=0.9)``, ``gradient(micro_batch=4)`` for gradient accumulation, or
    ``lora(rank=16)``, which is short for ``gradient(lora_rank=16)``, or for ``delta(lora_rank=16, steps=5)`` where steps
    are given.

    Raises:
        SpecError, UnknownNameError: if it is none of them, or an argument is unknown or out of range.
    """
    specs = parse_chain(text)
    if len(specs) != 1:
        raise SpecError(f"--share takes one call, got {text!r}. Defenses on top of it go into --defenses.")
    name, args = specs[0].type, dict(specs[0].args)
    if name not in SHARES:
        raise UnknownNameError("share", name, SHARES)
    if "share" in args:
        raise SpecError(f"{name}: unknown argument 'share'.")
    if name == "lora":
        name, args = _spelled_out(args)
    return build(LocalTraining, {"share": name, **args})


def _spelled_out(args: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """``lora(...)`` as a gradient or a delta with the adapters' settings under their full names."""
    if args.get("rank", 0) == 0:
        raise SpecError("lora: the argument 'rank' must be given and at least 1. Write lora(rank=16).")
    full = {f"lora_{key}" if key in _LORA else key: value for key, value in args.items()}
    return "delta" if {"steps", "lr", "optimizer", "epochs", "mini_batch", "momentum"} & set(args) else "gradient", full


def share_spec(training: LocalTraining) -> Spec:
    """The inverse: ``delta(steps=5, ...)`` with every setting spelled out."""
    plain: dict[str, Any] = dataclasses.asdict(training)
    return Spec(type=plain.pop("share"), args=plain)


def adapted(subject: Subject, training: LocalTraining, *, seed: int) -> Subject:
    """The subject with the adapters that ``training`` asks for, put into its module in place.

    Raises:
        ModelError: if it has adapters already or cannot take them.
    """
    return subject if training.lora is None else with_lora(subject, training.lora, seed=seed)
