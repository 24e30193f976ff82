"""The command line. Importing it loads neither torch nor transformers, so that ``--help`` answers at once."""

from __future__ import annotations


def main() -> None:
    """Runs the command line: exit code 0 done, 2 usage error, 3 nothing conclusive, 130 interrupted."""
    from gradleak.cli.app import app

    app()
