"""Why: the second span test reads a layer behind the first attention, where the input of a place depends on its context.
Its rank is the number of distinct contexts, and that number, not the number of tokens, must stay below the width.

    causal         the context of place i is the prefix up to i: a shared prefix counts once
    bidirectional  it is the whole record: only repeated records count once

Must not know models.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from gradleak.theory.reach import Places


def contexts(ids: Int64[Tensor, "batch seq"], mask: Places, *, causal: bool) -> Int64[Tensor, "batch seq"]:
    """A number per place, equal where the context is; −1 for padding."""
    numbers: dict[tuple[int, int], int] = {}
    whole: dict[tuple[int, ...], int] = {}
    found = torch.full_like(ids, -1)
    for b, (row, real) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        kept = [token for token, here in zip(row, real, strict=True) if here]
        # A causal prefix is its last token after the prefix before it; all records share the empty one.
        at = -1 if causal else -2 - whole.setdefault(tuple(kept), len(whole))
        for i, token in enumerate(kept):
            at = numbers.setdefault((at, token if causal else i), len(numbers))
            found[b, i] = at
    return found


def distinct_contexts(ids: Int64[Tensor, "batch seq"], mask: Places, *, causal: bool, within: Places) -> int:
    """Number of distinct contexts among the places of ``within``: the rank of a layer that reads them."""
    return int(contexts(ids, mask, causal=causal)[within & mask].unique().numel())
