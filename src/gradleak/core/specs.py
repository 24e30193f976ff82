"""Every attack and stage is plain data, ``{"type": name, "args": {...}}``, and one small grammar writes it.

    chain  :=  call ("+" call)*          defenses are chains
    calls  :=  call ("," call)*          attacks are lists
    call   :=  name [ "(" [ key "=" value ("," key "=" value)* ] ")" ]

Values are numbers, true/false/none, or bare words. Must not know which names exist: the catalogue does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradleak.core.errors import SpecError

_CALL = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\(([^()]*)\))?\s*")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The name of a method and the arguments that were given to it."""

    type: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        return {"type": self.type, "args": dict(self.args)}

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={_format_value(value)}" for key, value in self.args.items())
        return f"{self.type}({inside})"


def parse_chain(text: str) -> tuple[Spec, ...]:
    """Reads ``"clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)"``.

    Raises:
        SpecError: with the position and the remedy, if the text does not follow the grammar.
    """
    return _parse(text, "+")


def parse_list(text: str) -> tuple[Spec, ...]:
    """Reads ``"dlg,tag(iterations=500)"``. Raises ``SpecError`` like ``parse_chain``."""
    return _parse(text, ",")


def spec_of(method: Any) -> Spec:
    """The specification of a frozen-dataclass method: its module's name and every field, defaults included."""
    args = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
    return Spec(type=name_of(method), args=args)


def name_of(method: Any) -> str:
    """The catalogue name of a method (class or instance): the last part of its module's path."""
    cls = method if isinstance(method, type) else type(method)
    return cls.__module__.rsplit(".", 1)[-1]


def build(cls: type, args: Mapping[str, Any]) -> Any:
    """Constructs ``cls(**args)`` after checking the argument names and coercing integers to floats where declared.

    Raises:
        SpecError: for an unknown argument, a missing one, or a value that the class refuses.
    """
    name = name_of(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    unknown = [key for key in args if key not in known]
    if unknown:
        raise SpecError(f"{name}: unknown argument {unknown[0]!r}. It takes: {', '.join(known) or 'no arguments'}.")
    missing = [
        key
        for key, f in known.items()
        if key not in args and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SpecError(f"{name}: missing argument {missing[0]!r}. Write {name}({missing[0]}=...).")
    return cls(**{key: _coerce(name, key, value, str(known[key].type)) for key, value in args.items()})


def require_ranges(
    method: Any, *, counts: tuple[str, ...] = (), positive: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()
) -> None:
    """Checks the knobs of a method, for its ``__post_init__``.

    Args:
        counts: fields that must be at least 1.

    Raises:
        SpecError: naming the method, the field and its value.
    """
    rules = (
        (counts, "at least 1", lambda value: value >= 1),
        (positive, "positive", lambda value: value > 0),
        (not_negative, "not negative", lambda value: value >= 0),
    )
    for names, words, holds in rules:
        for name in names:
            value = getattr(method, name)
            if not holds(value):
                raise SpecError(f"{name_of(method)}: {name} must be {words}, not {_format_value(value)}.")


def _coerce(name: str, key: str, value: Any, annotation: str) -> Any:
    wants = {part.strip() for part in annotation.split("|")}
    if isinstance(value, int) and not isinstance(value, bool) and "int" not in wants and "float" in wants:
        return float(value)
    if isinstance(value, float) and value.is_integer() and "int" in wants and "float" not in wants:
        return int(value)
    given = "None" if value is None else type(value).__name__
    # An annotation with none of the plain types is a list of allowed words; the class itself checks which.
    if given in wants or (given == "str" and not wants & {"int", "float", "bool"}):
        return value
    raise SpecError(f"{name}: argument {key}={_format_value(value)} must be of type {annotation}.")


def _parse(text: str, separator: str) -> tuple[Spec, ...]:
    specs: list[Spec] = []
    position = 0
    while True:
        match = _CALL.match(text, position)
        if match is None:
            raise SpecError(_complaint(text, position))
        specs.append(Spec(type=match[1].replace("-", "_"), args=_parse_args(match[1], match[2] or "")))
        position = match.end()
        if position == len(text):
            return tuple(specs)
        if text[position] != separator:
            raise SpecError(_complaint(text, position))
        position += 1


def _complaint(text: str, position: int) -> str:
    return (
        f"Cannot read {text!r} at character {position + 1}. Write name(arg=value, ...), for example "
        f"'clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)'."
    )


def _parse_args(name: str, text: str) -> dict[str, Any]:
    args: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise SpecError(f"{name}: cannot read {part!r}. Arguments are written key=value.")
        if key in args:
            raise SpecError(f"{name}: argument {key!r} is given twice.")
        args[key] = parse_value(value)
    return args


def parse_value(text: str) -> Any:
    """A number, true/false/none, or the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("'\"")


def _format_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
