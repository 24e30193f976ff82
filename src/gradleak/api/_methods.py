"""Attacks and defenses are accepted as objects or as text; a plan holds text. Must not know what is done with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gradleak.core.errors import UsageError

if TYPE_CHECKING:
    from gradleak.core.attack import Attack
    from gradleak.core.stage import Stage

    Attacks = str | Attack | Sequence[str | Attack]
    """One attack or several: each an object, or text such as ``"dlg(iterations=100)"``."""

    Defense = str | Stage | Sequence[str | Stage]
    """One chain of stages: text such as ``"clip(max_norm=1.0)+sign()"``, a stage, or a sequence of either."""

    Defenses = str | Stage | Sequence[Defense]
    """Several defenses, each compared with the others and with none."""


def attacks_text(attacks: Attacks | None) -> str | None:
    """As ``--attacks`` takes them; None where none are named.

    Raises:
        UsageError: for an object that the catalogue does not make from its own text.
    """
    if attacks is None:
        return None
    return ",".join(_text("attacks", attack) for attack in _several(attacks))


def chain_text(defense: Defense) -> str:
    """One defense as ``--defenses`` takes it. Raises as ``attacks_text``."""
    return "+".join(_text("defenses", stage) for stage in _several(defense)) or "none"


def defenses_text(defenses: Defenses) -> tuple[str, ...]:
    """Several defenses, a sequence inside the sequence being a chain. Raises as ``attacks_text``."""
    return tuple(chain_text(defense) for defense in _several(defenses))


def _several(methods: Any) -> Iterable[Any]:
    return methods if isinstance(methods, Sequence) and not isinstance(methods, str) else (methods,)


def _text(kind: str, method: Any) -> str:
    if isinstance(method, str):
        return method
    from gradleak.core.specs import spec_of
    from gradleak.harness.request import catalogue

    spec = spec_of(method)
    if type(catalogue.make(kind, spec)) is not type(method):
        raise UsageError(
            f"{type(method).__name__} is not what the catalogue knows as {spec.type!r}. A record must be able to name its "
            f"methods: publish it by an entry point of the group gradleak.{kind}, or rename its module."
        )
    return str(spec)
