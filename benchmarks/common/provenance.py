"""Pages that were printed before results were recorded: which commit last wrote them, from git's own history.

    python -m benchmarks.common.provenance            # adds that line to every page that has no generated last line
    python -m benchmarks.common.provenance --check    # names the pages without one, and fails if there are any

The commit is the last that changed what stands in the file; moving it does not count. It bounds the code from above: the numbers were
measured at that commit or before it, on a machine and from seeds that nothing recorded. Must not know any script.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import origin
from benchmarks.common.run import RECORDED, RESULTS
from gradleak.harness.running.store import write_atomically

WRITTEN = "Page last written by commit "
"""How the last line of a page begins that was printed before results were recorded."""


def unmarked(results: Path) -> list[Path]:
    """Pages whose last line is no generated one."""
    pages = sorted(results.rglob("*.md"))
    return [page for page in pages if not _last_line(page).startswith((RECORDED, WRITTEN))]


def last_written(page: Path) -> str | None:
    """The commit that last changed the text of a page, under whatever name; None where git does not know the page."""
    # Added or modified, not renamed: a move leaves the numbers as they are.
    return (
        origin.git("log", "--follow", "--diff-filter=AM", "-1", "--format=%h", "--abbrev=10", "--", str(page)) or None
    )


def mark(page: Path) -> bool:
    """Adds the line; False where no commit has written the page yet."""
    commit = last_written(page)
    if commit is None:
        return False
    text = page.read_text(encoding="utf-8").rstrip("\n")
    write_atomically(page, f"{text}\n\n{WRITTEN}{commit} (machine and seeds not recorded).\n".encode())
    return True


def _last_line(page: Path) -> str:
    lines = page.read_text(encoding="utf-8").rstrip().splitlines()
    return lines[-1] if lines else ""


def main(argv: Sequence[str] | None = None) -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--check", action="store_true")
    asked = reader.parse_args(argv)
    pages = unmarked(RESULTS)
    left = pages if asked.check else [page for page in pages if not mark(page)]
    print(
        "\n".join(f"no generated last line: {page.relative_to(RESULTS)}" for page in left) or "every page has its line"
    )
    sys.exit(bool(left))


if __name__ == "__main__":
    main()
