"""Data goes to standard output, everything else to standard error, and wrong use ends in one message."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from gradleak.core.errors import GradleakError

FAILED, USAGE_ERROR, INCONCLUSIVE, INTERRUPTED = 1, 2, 3, 130
_PIPE_WIDTH = 140


def out() -> Console:
    return _wide(Console())


def err() -> Console:
    return _wide(Console(stderr=True))


def _wide(console: Console) -> Console:
    """A pipe has no width of its own; 80 columns would fold every table."""
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def print_json(plain: Any) -> None:
    typer.echo(json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False))


def new_folder(model: str, suffix: str = "") -> Path:
    """A run folder that does not exist yet, named by the time and the model."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(model).name).strip("-.") or "model"
    stem = f"{time.strftime('%Y-%m-%d-%H%M%S')}-{name}{suffix}"
    candidates = (Path("runs") / (stem if n == 0 else f"{stem}-{n}") for n in range(1000))
    return next(path for path in candidates if not path.exists())


@contextmanager
def errors_shown() -> Iterator[None]:
    """Turns wrong use into a message and exit code 2. Anything unforeseen is a bug and keeps its traceback."""
    try:
        yield
    except GradleakError as error:
        message = Text("Error: ", style="bold red")
        message.append(str(error), style="not bold default")
        err().print(message, soft_wrap=True, highlight=False)
        raise typer.Exit(USAGE_ERROR) from None
    except KeyboardInterrupt:
        err().print("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
