"""Tests mirror the source: whoever changes a module finds its tests at the same path."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ROOT / "src" / "gradleak", ROOT / "tests"
ACROSS = ("agreement", "benchmarks", "conformance", "docs", "support")
"""Folders of tests that are about several modules, or about what is not source."""
KINDS = ("oracle", "property", "contract", "errors")
LONG = 60
"""Lines above which a module has tests of its own; shorter ones may be tested through those that use them."""


def stems(module: Path) -> tuple[Path, str]:
    """Folder and first part of the name of the tests of a module; a package's face is tested beside the package."""
    place = module.relative_to(SOURCE)
    if place.stem != "__init__":
        return place.parent, place.stem.lstrip("_")
    return (place.parent.parent, place.parent.name) if place.parent.name else (Path(), "package")


def tests_of(module: Path) -> list[Path]:
    folder, stem = stems(module)
    return [*(TESTS / folder).glob(f"test_{stem}.py"), *(TESTS / folder).glob(f"test_{stem}_*.py")]


MODULES = sorted(SOURCE.rglob("*.py"))
LONG_MODULES = [m for m in MODULES if len(m.read_text(encoding="utf-8").splitlines()) > LONG]
MIRRORED = sorted(
    path
    for path in TESTS.rglob("test_*.py")
    if path.relative_to(TESTS).parts[0] not in (*ACROSS, "test_layout.py") and path.name != "conftest.py"
)


@pytest.mark.parametrize("module", LONG_MODULES, ids=lambda m: str(m.relative_to(SOURCE)))
def test_a_module_has_tests_at_its_own_path(module: Path) -> None:
    folder, stem = stems(module)
    assert tests_of(module), f"tests/{folder}/test_{stem}.py does not exist"


def test_every_test_file_stands_beside_a_module() -> None:
    """The longest module name that a file's name begins with is what it tests."""
    known = {(folder, stem) for folder, stem in map(stems, MODULES)}
    strays = []
    for path in MIRRORED:
        folder, words = path.parent.relative_to(TESTS), path.stem.removeprefix("test_").split("_")
        starts = ["_".join(words[:k]) for k in range(1, len(words) + 1)]
        if not any((folder, start) in known for start in starts) and folder.name not in starts:
            strays.append(str(path.relative_to(ROOT)))
    assert not strays


@pytest.mark.parametrize("path", MIRRORED, ids=lambda p: str(p.relative_to(TESTS)))
def test_a_test_file_says_what_kind_of_proof_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marks = [ast.unparse(n.value) for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)]
    assert any(f"pytest.mark.{kind}" in mark for mark in marks for kind in KINDS)
