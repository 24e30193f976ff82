"""What the tests of the command line share: a tiny model, a file of private notes, and two ways to call gradleak."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gradleak.cli.app import app

NOTES = (
    "the doctor called about the blood test results",
    "please wire the money to the new account today",
    "my password for the portal is swordfish",
    "meet me at the corner cafe at noon",
    "the surgery is scheduled for next tuesday morning",
    "our client wants to settle the case quietly",
)
TINY = ("hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=64")


@pytest.fixture
def gradleak() -> Callable[..., Any]:
    """Calls the command line in this process; the result has ``exit_code``, ``stdout`` and ``stderr``."""

    def call(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts the command line as a process of its own."""

    def call(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gradleak", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # A test run in the background of a shell inherits "ignore Ctrl-C"; a user's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    return call


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("\n".join(NOTES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tiny(notes: Path) -> list[object]:
    """``audit`` of a random one-layer encoder with attacks that take moments."""
    settings = [part for pair in TINY for part in ("--set", pair)]
    return [
        "audit",
        "random:bert",
        "--data",
        notes,
        "--batch-size",
        1,
        "--attacks",
        "token_support,tag(iterations=3)",
        *settings,
    ]
