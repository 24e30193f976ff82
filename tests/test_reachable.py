"""No module of the package serves tests and benchmarks only: each is reached by imports from what a user calls."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import gradleak

pytestmark = pytest.mark.contract

ROOT = Path(gradleak.__file__).parent
REGISTRIES = ("attacks", "defenses", "metrics")
"""Packages whose methods are found by name and imported by nobody."""
DOORS = ("cli", "api", "integrations")

RUN_BY_NAME = 'if __name__ == "__main__":'
"""What a module ends with that is called as ``python -m``."""

WITHOUT_A_FACE = (
    "gradleak.privacy.auditing.canaries",
    "gradleak.privacy.bounds.cramer_rao",
)
"""Modules that nobody reaches yet. The list may only shrink: a name that is reached, or gone, fails the second test."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports(name: str, source: str, known: Iterable[str], *, package: bool) -> Iterator[str]:
    """Modules of ``known`` that this source names in an import, wherever the import stands."""
    known = set(known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            above = parts[: len(parts) - node.level + package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in known or base in known:
                    yield inner if inner in known else base


def reached(paths: Mapping[str, Path]) -> set[str]:
    """What the doors, the registries and ``python -m`` reach, a package's ``__init__`` not counting for its modules."""
    doors = tuple(f"gradleak.{name}" for name in (*DOORS, *REGISTRIES))
    pending = ["gradleak", *(name for name in paths if name.startswith(doors))]
    pending += [
        name for name, path in paths.items() if path.name == "__main__.py" or RUN_BY_NAME in path.read_text("utf-8")
    ]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        path = paths[name]
        pending += imports(name, path.read_text(encoding="utf-8"), paths, package=path.name == "__init__.py")
    return seen


def unreached() -> set[str]:
    paths = modules()
    holds_code = {name for name, path in paths.items() if path.name != "__init__.py"}
    return holds_code - reached(paths)


def test_every_module_is_reached_from_what_a_user_calls() -> None:
    assert unreached() - set(WITHOUT_A_FACE) == set()


def test_no_exemption_outlives_its_reason() -> None:
    assert set(WITHOUT_A_FACE) <= unreached()


def test_a_module_that_only_a_test_imports_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "gradleak"
    for package in ("", "cli", "theory"):
        (root / package).mkdir(parents=True, exist_ok=True)
        (root / package / "__init__.py").touch()
    (root / "__main__.py").touch()
    (root / "cli" / "app.py").write_text("def run():\n    from ..theory import used\n", encoding="utf-8")
    (root / "theory" / "used.py").touch()
    (root / "theory" / "alone.py").touch()
    paths = modules(root)
    assert set(paths) - reached(paths) == {"gradleak.theory", "gradleak.theory.alone"}
