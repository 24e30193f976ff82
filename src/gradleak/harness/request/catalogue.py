"""The module path is the registry. A method enters by lying in the package of its kind, or by an entry point of
another distribution; nothing is listed by hand. Must not import torch to tell names, and must not know any method.

    gradleak.attacks.dlg           is the attack "dlg": the one public Attack that the module defines
    entry point group              "gradleak.attacks", ".defenses", ".metrics": name = "package.module" or
                                   "package.module:Class", where the module's name is the method's name
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradleak.core.errors import GradleakError, SpecError, UnknownNameError, UsageError
from gradleak.core.knowledge import FACTS, THREATS, Threat, find_threat
from gradleak.core.specs import Spec, build, parse_chain, parse_list

if TYPE_CHECKING:
    from gradleak.core.attack import Attack
    from gradleak.core.stage import Stage

KINDS = ("attacks", "defenses", "metrics", "threats")

_BASES = {
    "attacks": ("gradleak.core.attack", "Attack"),
    "defenses": ("gradleak.core.stage", "Stage"),
    "metrics": ("gradleak.core.metric", "Metric"),
}
_SINGULAR = {"attacks": "attack", "defenses": "defense", "metrics": "metric", "threats": "threat"}
_SECTION = re.compile(r"^([A-Z][A-Za-z ]*):[ \t]*(.*)$")
_INLINE = frozenset({"Source", "Deviations", "Guarantees", "Chance"})
"""Sections whose text may begin on the line of their title."""
_ENTRY = re.compile(r"^(\w+(?:, \w+)*):[ \t]+(.*)$")
_SEMICOLON = re.compile(r";\s+(?=\w+:\s)")


def _packages() -> Mapping[str, tuple[str, ...]]:
    return {kind: (f"gradleak.{kind}",) for kind in _BASES}


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """The methods that can be found.

    Attributes:
        packages: for each kind but threats, the packages whose modules are methods.
    """

    packages: Mapping[str, tuple[str, ...]] = field(default_factory=_packages)

    def names(self, kind: str) -> tuple[str, ...]:
        """Every name of a kind, sorted. Modules of ``packages`` are listed without importing them.

        Raises:
            UnknownNameError: if there is no such kind.
            GradleakError: if two methods of the kind have the same name.
        """
        _check_kind(kind)
        return tuple(sorted(THREATS)) if kind == "threats" else tuple(sorted(self._places(kind)))

    def find(self, kind: str, name: str) -> type:
        """The class of that name; dashes may be written for underscores.

        Raises:
            UnknownNameError: with the nearest name.
            GradleakError: if the module does not define exactly one method, or the method is incomplete.
        """
        _check_kind(kind)
        if kind == "threats":
            raise UsageError("A threat is a set of facts, not a class. Use make('threats', Spec(type=name)).")
        places, key = self._places(kind), name.replace("-", "_")
        if key not in places:
            raise UnknownNameError(_SINGULAR[kind], name, places)
        module, _, attribute = places[key].partition(":")
        return _method(kind, import_module(module), attribute)

    def make(self, kind: str, spec: Spec) -> Any:
        """The method that a specification describes; for ``"threats"`` a ``Threat``.

        Raises:
            UnknownNameError, SpecError: if the name or an argument does not fit.
        """
        if kind == "threats":
            return _without_arguments(spec, find_threat(spec.type))
        cls = self.find(kind, spec.type)
        return build(cls, spec.args) if dataclasses.is_dataclass(cls) else _without_arguments(spec, cls())

    def make_stages(self, text: str) -> tuple[Stage, ...]:
        """Reads ``"clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)"``; ``"none"`` is no stage.

        The stages come bound to those before them, so that a chain that cannot work fails here, before any heavy work.

        Raises:
            UnknownNameError, SpecError: if the text, a name or an argument does not fit.
        """
        if text.strip().lower() == "none":
            return ()
        stages: list[Stage] = []
        for spec in parse_chain(text):
            stages.append(self.make("defenses", spec).bind(tuple(stages)))
        return tuple(stages)

    def make_attacks(self, text: str) -> tuple[Attack, ...]:
        """Reads ``"dlg,tag(iterations=500)"``. Raises ``UnknownNameError`` or ``SpecError``."""
        return tuple(self.make("attacks", spec) for spec in parse_list(text))

    def explain(self, kind: str | None, name: str) -> dict[str, Any]:
        """What a method is, as plain data.

        Args:
            kind: one of ``KINDS``, or None to look through all of them.
            name: the name in that kind.

        Returns:
            ``kind``, ``name``, ``summary``, ``module``, ``arguments`` (each with ``name``, ``type``, ``required``,
            ``default``, ``meaning``), ``needs`` and ``uses`` (fact → meaning), ``description``, ``sections`` (title →
            text, of the docstring) and ``source`` (where the method comes from; empty if it names none).

        Raises:
            UnknownNameError: if nothing has that name.
            UsageError: if several kinds have it and none was given.
        """
        found = self._kind_of(name) if kind is None else kind
        if found == "threats":
            return _explain_threat(find_threat(name))
        return _explain_class(found, self.find(found, name))

    def _kind_of(self, name: str) -> str:
        key = name.replace("-", "_")
        kinds = [kind for kind in KINDS if key in self.names(kind)]
        if not kinds:
            raise UnknownNameError("name", name, (known for kind in KINDS for known in self.names(kind)))
        if len(kinds) > 1:
            raise UsageError(f"{name!r} is among the {' and the '.join(kinds)}. Say which kind you mean.")
        return kinds[0]

    def _places(self, kind: str) -> dict[str, str]:
        """Name → "module" or "module:Class"."""
        places: dict[str, str] = {}
        for name, place in (*self._built_in(kind), *_third_party(kind)):
            if places.setdefault(name, place) != place:
                raise GradleakError(
                    f"Two {kind} are called {name!r}: {places[name]} and {place}. Rename or uninstall one of them."
                )
        return places

    def _built_in(self, kind: str) -> Iterator[tuple[str, str]]:
        for package in self.packages.get(kind, ()):
            spec = find_spec(package)
            if spec is None or spec.submodule_search_locations is None:
                raise GradleakError(f"{package!r} is no package that Python can find; it was to hold {kind}.")
            for module in pkgutil.iter_modules(spec.submodule_search_locations):
                if not module.name.startswith("_"):
                    yield module.name, f"{package}.{module.name}"


def _third_party(kind: str) -> Iterator[tuple[str, str]]:
    """Entry points that can be imported; a broken one is named in a warning and left out."""
    for entry in sorted(entry_points(group=f"gradleak.{kind}"), key=lambda entry: (entry.name, entry.value)):
        if entry.module.rsplit(".", 1)[-1] != entry.name:
            raise GradleakError(
                f"Entry point {entry.name!r} of {_owner(entry)} leads to module {entry.module!r}. A method bears the name "
                "of its module: give both the same name."
            )
        try:
            import_module(entry.module)
        except ImportError as error:
            warnings.warn(
                f"Left out of the {kind}: {entry.name!r} of {_owner(entry)} cannot be imported ({error}). "
                "Mend or uninstall that distribution.",
                stacklevel=2,
            )
            continue
        yield entry.name, entry.value.replace(" ", "").partition("[")[0]


def _owner(entry: EntryPoint) -> str:
    return f"distribution {entry.dist.name!r}" if entry.dist is not None else "an unnamed distribution"


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)


def _method(kind: str, module: ModuleType, attribute: str) -> type:
    """The method in ``module``. Raises ``GradleakError`` with the rule that is broken."""
    home, base_name = _BASES[kind]
    base = getattr(import_module(home), base_name)
    defined = [
        thing
        for name, thing in vars(module).items()
        if not name.startswith("_") and isinstance(thing, type) and issubclass(thing, base)
        if thing.__module__ == module.__name__ and attribute in ("", name)
    ]
    if len(defined) != 1:
        listed = ", ".join(sorted(cls.__name__ for cls in defined)) or "none"
        raise GradleakError(
            f"Module {module.__name__!r} must define exactly one public subclass of {base_name}, it defines: {listed}. "
            "Put each method in its own file; begin the names of helper modules and classes with an underscore."
        )
    cls = defined[0]
    if inspect.isabstract(cls):
        raise GradleakError(
            f"{cls.__name__} in {module.__name__!r} lacks: {', '.join(sorted(cls.__abstractmethods__))}."
        )
    if not isinstance(getattr(cls, "summary", None), str):
        raise GradleakError(f"{cls.__name__} in {module.__name__!r} lacks `summary`, one sentence as a class variable.")
    return cls


def _without_arguments(spec: Spec, made: Any) -> Any:
    if spec.args:
        raise SpecError(f"{spec.type}: unknown argument {next(iter(spec.args))!r}. It takes: no arguments.")
    return made


def _explain_threat(threat: Threat) -> dict[str, Any]:
    return {
        "kind": "threats",
        "name": threat.name,
        "summary": threat.summary,
        "module": "gradleak.core.knowledge",
        "arguments": [],
        "needs": {},
        "uses": {},
        "facts": {fact: FACTS[fact] for fact in sorted(threat.facts)},
        "description": threat.summary,
        "sections": {},
        "source": "",
    }


def _explain_class(kind: str, cls: Any) -> dict[str, Any]:
    description, sections = _split_docstring(inspect.cleandoc(cls.__doc__ or ""))
    return {
        "kind": kind,
        "name": cls.__module__.rsplit(".", 1)[-1],
        "summary": cls.summary,
        "module": cls.__module__,
        "arguments": _arguments(cls, sections.get("Args") or sections.get("Attributes") or ""),
        "needs": _facts(cls, "needs"),
        "uses": _facts(cls, "uses"),
        "description": description,
        "sections": sections,
        "source": sections.get("Source", ""),
    }


def _facts(cls: type, role: str) -> dict[str, str]:
    return {fact: FACTS.get(fact, "") for fact in sorted(getattr(cls, role, frozenset()))}


def _arguments(cls: type, text: str) -> list[dict[str, Any]]:
    if not dataclasses.is_dataclass(cls):
        return []
    meanings = _meanings(text)
    return [
        {
            "name": item.name,
            "type": item.type if isinstance(item.type, str) else getattr(item.type, "__name__", str(item.type)),
            "required": item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING,
            "default": _default(item),
            "meaning": meanings.get(item.name, ""),
        }
        for item in dataclasses.fields(cls)
        if item.init
    ]


def _default(item: dataclasses.Field[Any]) -> str | int | float | bool | None:
    if item.default_factory is not dataclasses.MISSING:
        return str(item.default_factory())
    if item.default is dataclasses.MISSING:
        return None
    return (
        item.default
        if item.default is None or isinstance(item.default, str | int | float | bool)
        else str(item.default)
    )


def _split_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The text before the first section, and title → text of every section. A title stands at the margin."""
    titles, blocks = [""], [[]]
    for line in text.splitlines():
        match = _SECTION.match(line)
        if match is not None and (not match[2] or match[1] in _INLINE):
            titles.append(match[1])
            blocks.append([match[2]] if match[2] else [])
        else:
            blocks[-1].append(line)
    texts = [inspect.cleandoc("\n".join(["", *block])).strip() for block in blocks]
    return texts[0], dict(zip(titles[1:], texts[1:], strict=True))


def _meanings(text: str) -> dict[str, str]:
    """Argument → text, from an ``Args`` section: entries start at the margin, what follows is indented.

    Short entries may share a line, ``first: text; second: text``.
    """
    meanings: dict[str, str] = {}
    current: tuple[str, ...] = ()
    for line in text.splitlines():
        for position, piece in enumerate(_SEMICOLON.split(line)):
            match = _ENTRY.match(piece.strip() if position else piece)
            if match is not None:
                current = tuple(match[1].split(", "))
            addition = match[2] if match is not None else piece.strip()
            for name in current:
                meanings[name] = f"{meanings.get(name, '')} {addition}".strip()
    return meanings


_DEFAULT = Catalogue()
names, find, make = _DEFAULT.names, _DEFAULT.find, _DEFAULT.make
make_stages, make_attacks, explain = _DEFAULT.make_stages, _DEFAULT.make_attacks, _DEFAULT.explain
