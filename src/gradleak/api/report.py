"""A run is rendered again, for instance with the recovered content in clear. Must not import torch before it is called."""

from __future__ import annotations

from pathlib import Path


def report(run: str | Path, *, reveal: bool = False) -> Path:
    """Writes ``report.html`` into a run folder and returns its path.

    Args:
        run: a folder that an audit wrote.
        reveal: show recovered content in clear; it is redacted otherwise.

    Raises:
        DataError: if the folder holds no run.
    """
    from gradleak.report import write

    return write(Path(run), reveal=reveal)
