"""Which specifications of defenses the conformance tests try: a test that takes ``any_spec`` runs for every defense,
one that takes ``update_spec`` for those that see only the update, one that takes ``client_spec`` for all others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from gradleak.core.errors import SpecError
from gradleak.core.specs import Spec, build
from gradleak.core.stage import UpdateStage
from gradleak.harness.request import catalogue

BRIEF = {"steps": 2}
"""Arguments that say how long a defense works; its contract is the same after two steps, and the default takes long."""


def trial_values(annotation: Any) -> tuple[Any, ...]:
    """Values to try for an argument of this type."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    kinds = get_args(annotation) or (annotation,)
    return {float: (0.5,), int: (2,), bool: (True, False)}.get(next(k for k in kinds if k is not type(None)), ())


def examples(name: str) -> Iterator[Spec]:
    """Specifications of ``name`` that construct: the required arguments alone, and with each optional one in turn."""
    cls = catalogue.find("defenses", name)
    types = get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init]
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    bases: list[dict[str, Any]] = [{key: value for key, value in BRIEF.items() if key in types}]
    for key in required:
        bases = [{**base, key: value} for base in bases for value in trial_values(types[key])]
    optional = [
        {f.name: value} for f in fields if f.name not in (*required, *BRIEF) for value in trial_values(types[f.name])
    ]
    for base in bases:
        for extra in ({}, *optional):
            try:
                build(cls, {**base, **extra})
            except SpecError:
                continue
            yield Spec(type=name, args={**base, **extra})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for argument in ("any_spec", "update_spec", "client_spec"):
        if argument in metafunc.fixturenames:
            specs = [spec for name in catalogue.names("defenses") for spec in examples(name)]
            kept = [
                spec
                for spec in specs
                if argument == "any_spec" or _sees_only_updates(spec) == (argument == "update_spec")
            ]
            metafunc.parametrize(argument, kept, ids=str)


def _sees_only_updates(spec: Spec) -> bool:
    return issubclass(catalogue.find("defenses", spec.type), UpdateStage)


@pytest.fixture(scope="session")
def examples_of() -> Any:
    """The specifications that are tried of a defense."""
    return lambda name: list(examples(name))
