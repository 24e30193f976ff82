"""What methods there are, and what each needs. Must not import torch before it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One attack, defense, metric or threat model: its kind, its name, and what it does in one sentence."""

    kind: str
    name: str
    summary: str


def list_methods(kind: str | None = None) -> tuple[Method, ...]:
    """Every method of a kind, sorted by name.

    Args:
        kind: ``"attacks"``, ``"defenses"``, ``"metrics"`` or ``"threats"``; all four, one after the other, if None.

    Raises:
        UnknownNameError: if there is no such kind.
    """
    from gradleak.harness.request import catalogue

    kinds = catalogue.KINDS if kind is None else (kind,)
    return tuple(
        Method(kind=name_of_kind, name=name, summary=catalogue.explain(name_of_kind, name)["summary"])
        for name_of_kind in kinds
        for name in catalogue.names(name_of_kind)
    )


def explain(name: str, *, kind: str | None = None) -> dict[str, Any]:
    """What one method is, as plain data.

    Args:
        name: as ``list_methods`` has it; dashes may be written for underscores.
        kind: ``"attacks"``, ``"defenses"``, ``"metrics"`` or ``"threats"``, where several have the name.

    Returns:
        ``kind``, ``name``, ``summary``, ``module``, ``arguments`` (each with ``name``, ``type``, ``required``, ``default``,
        ``meaning``), ``needs`` and ``uses`` (fact of the adversary's knowledge → meaning), ``description``, ``sections`` (title →
        text of the docstring) and ``source`` (where the method comes from; empty if it names none). A threat model has its
        ``facts`` too.

    Raises:
        UnknownNameError: if nothing has that name, with the nearest one.
        UsageError: if several kinds have it and none was given.
    """
    from gradleak.harness.request import catalogue

    return catalogue.explain(kind, name)
