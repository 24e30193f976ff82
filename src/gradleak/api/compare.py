"""What changed between two runs over the same batches. Must not import torch before it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradleak.report.conclusions.compare import Comparison


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Pairs two runs batch by batch: second minus first, with Student's 95 % interval of the mean difference.

    Args:
        first, second: run folders over the same batches: same data, seed and sizes.

    Returns:
        What differs between the plans, the difference of every metric of every attack and defense, and the cells that only
        one of the runs holds.

    Raises:
        DataError: if a folder holds no run.
        UsageError: if the runs did not draw the same batches.
    """
    from gradleak.report.conclusions import compare as comparing

    return comparing.compare(Path(first), Path(second))
