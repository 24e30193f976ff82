"""``python -m gradleak``: the command line."""

from __future__ import annotations

from gradleak.cli import main

if __name__ == "__main__":
    main()
