"""Help answers at once, because nothing heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

HEAVY = ("torch", "transformers", "numpy", "pydantic")
VERBS = (
    "audit",
    "attack",
    "predict",
    "account",
    "report",
    "compare",
    "check",
    "recommend",
    "list",
    "explain",
    "doctor",
)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=dict(os.environ)
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, runpy; sys.argv = ['gradleak', '--help']\n"
        "try: runpy.run_module('gradleak', run_name='__main__')\n"
        f"finally: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("HEAVY []")
    assert all(verb in done.stdout for verb in VERBS)


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = _run("-c", f"import gradleak, sys; print([n for n in {HEAVY!r} if n in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_help_takes_less_than_a_second() -> None:
    """In processor seconds: the claim is about gradleak, not about what else runs on the machine."""
    before = os.times()
    _run("-m", "gradleak", "--help")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert 0 < spent < 1.0


def test_every_public_name_can_be_reached() -> None:
    import gradleak

    for name in gradleak.__all__:
        assert getattr(gradleak, name) is not None
    assert callable(gradleak.audit)


def test_version_matches_the_distribution_file() -> None:
    import tomllib

    import gradleak

    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"] == gradleak.__version__
