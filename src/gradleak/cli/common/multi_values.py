"""``--defenses A B`` and ``--set a=1 b=2`` mean the same as repeating the option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

_MARKS = {"--defenses": "(", "--set": "="}
"""What tells a further value of an option from the model, whose name never holds it."""


class SpreadCommand(TyperCommand):
    """A command whose list options take several values in a row."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))


def spread(arguments: Sequence[str]) -> list[str]:
    """``["--set", "a=1", "b=2"]`` → ``["--set", "a=1", "--set", "b=2"]``; everything else as it was."""
    result: list[str] = []
    option: str | None = None
    filled = False
    for argument in arguments:
        if argument.startswith("-"):
            name, _, value = argument.partition("=")
            option, filled = (name, bool(value)) if name in _MARKS else (None, False)
        elif option is not None and filled:
            if _MARKS[option] in argument:
                result.append(option)
            else:
                option = None
        else:
            filled = option is not None
        result.append(argument)
    return result
