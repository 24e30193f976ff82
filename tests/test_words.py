"""The words of the field stand in the code: a private dialect may only shrink.

Forbidden: words that mean nothing to a reader of the field, in identifiers, docstrings and messages; the opening "Why:" of a module;
variables whose name hides what they hold. What is still there is counted package by package in ``tests/words.json``; a count
may only fall. ``python tests/test_words.py`` writes the counts of today.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gradleak"
ALLOWED = Path(__file__).with_name("words.json")
DIALECT = re.compile(
    r"(?<![a-z])(kin|ledgers?|settled|tabled|drowned|owed|blurred|parted)(?![a-z])|cannot tell all", re.IGNORECASE
)
EARLIER_KEYS = frozenset({"owed_to_prior"})
"""Keys of records that were written before the words were forbidden, and that must still be read."""
EMPTY_NAMES = frozenset({"found", "made", "told", "each", "one", "here"})


def offenses(tree: ast.Module) -> Iterator[str]:
    """Every forbidden word of a module: "dialect", "why" or "name"."""
    if (ast.get_docstring(tree) or "").startswith("Why:"):
        yield "why"
    for node in ast.walk(tree):
        for text in _texts(node):
            yield from ("dialect" for _ in DIALECT.finditer(text))
        if _binds(node) in EMPTY_NAMES:
            yield "name"


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in EARLIER_KEYS:
        yield node.value
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield _words(node.name)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield _words(node.id)
    elif isinstance(node, ast.arg):
        yield _words(node.arg)


def _words(identifier: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", identifier).replace("_", " ")


def _binds(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    return node.arg if isinstance(node, ast.arg) else None


def counts() -> dict[str, dict[str, int]]:
    """Package → kind → number of offenses, zeros left out."""
    packages: dict[str, Counter[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        packages.setdefault(package, Counter()).update(offenses(ast.parse(path.read_text(encoding="utf-8"))))
    return {package: dict(sorted(kinds.items())) for package, kinds in packages.items() if kinds}


@pytest.mark.contract
def test_forbidden_words_only_become_fewer() -> None:
    allowed, present = json.loads(ALLOWED.read_text(encoding="utf-8")), counts()
    grown = {
        f"{package}: {kind}": (allowed.get(package, {}).get(kind, 0), number)
        for package, kinds in present.items()
        for kind, number in kinds.items()
        if number > allowed.get(package, {}).get(kind, 0)
    }
    assert not grown, f"(allowed, present): {grown}. Name the noun; see tests/test_words.py."


@pytest.mark.contract
@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ('"""Why: so."""', ["why"]),
        ("found = 1", ["name"]),
        ("for each in range(3):\n    print(each)", ["name"]),
        ("def count(one: int) -> int:\n    return one", ["name"]),
        ("class SettledTokens:\n    pass", ["dialect"]),
        ("def held_ledger() -> None: ...", ["dialect"]),
        ('raise ValueError(f"{3} tokens are owed to the prior")', ["dialect"]),
        ("kind, departed, skin, results = 1, 2, 3, 4", []),
        ("row.found = 1", []),
    ],
)
def test_the_check_sees_what_is_forbidden(code: str, kinds: list[str]) -> None:
    assert list(offenses(ast.parse(code))) == kinds


if __name__ == "__main__":
    ALLOWED.write_text(json.dumps(counts(), indent=2) + "\n", encoding="utf-8")
