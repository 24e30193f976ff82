"""Why: the second span test reads a layer behind the first attention, where the input of a place depends on its context.
Its rank is the number of distinct contexts, and that number, not the number of tokens, must stay below the width.

    causal         the context of place i is the prefix up to i: a shared prefix counts once
    bidirectional  it is the whole record: only repeated records count once
    a window       it is what stands in the window, and where the window stands if positions are added to the input

Must not know models.
"""

from __future__ import annotations

from jaxtyping import Bool, Int64
from torch import Tensor

from gradleak.theory.identifiability.receptive_field import Places


def distinct_contexts(
    ids: Int64[Tensor, "batch seq"],
    visible: Bool[Tensor, "batch query key"],
    *,
    positional: bool,
    within: Places,
) -> int:
    """Number of distinct contexts among the places of ``within``: the rank of a layer that reads them.

    Args:
        visible: what each place attends to in the first block.
        positional: whether the position is part of the first input.
    """
    found: set[tuple[int, int, tuple[int, ...]]] = set()
    for row, sees, lit in zip(ids.tolist(), visible.tolist(), within.tolist(), strict=True):
        for place, (seen, here) in enumerate(zip(sees, lit, strict=True)):
            if here:
                places = [j for j, real in enumerate(seen) if real]
                found.add((place - places[0], places[0] if positional else 0, tuple(row[j] for j in places)))
    return len(found)
