"""A projection's gradient holds only the tokens that the loss can send an error signal to. Which those are follows
from the mask, the direction of attention and where the loss reads, before any number is computed.

Positions with a signal at the output of block l are R_l. Within a block, where "attended to" is that block's own window

    queries   i in R_l whose softmax row has at least two entries (a row of one entry is constant)
    keys      j attended to by such a query
    values    j attended to by any i in R_l
    R_{l-1}   R_l and everything attended to from it.

Must not know weights, tokens or attacks.

The second span test reads a layer behind the first attention, where the input of a place depends on its context.
Its rank is the number of distinct contexts, and that number, not the number of tokens, must stay below the width.

    causal         the context of place i is the prefix up to i: a shared prefix counts once
    bidirectional  it is the whole record: only repeated records count once
    a window       it is what stands in the window, and where the window stands if positions are added to the input

Must not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Int64
from torch import Tensor

from gradleak.core.errors import SpecError
from gradleak.theory.identifiability.attention_windows import Band

Places = Bool[Tensor, "batch seq"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Positions of one block that receive an error signal, one boolean ``[batch seq]`` each.

    Attributes:
        output: at the block's output; also what the attention output and the feed-forward maps read.
        queries, keys, values: at the three projections.
        visible: the positions that each position's softmax row runs over, ``[batch query key]``.
    """

    output: Places
    queries: Places
    keys: Places
    values: Places
    visible: Bool[Tensor, "batch query key"]


def propagate(read: Places, mask: Places, *, bands: Sequence[Band]) -> tuple[Reach, ...]:
    """From where the loss reads to every block, the first block first.

    Args:
        read: positions of the last block's output that the loss depends on.
        mask: true where a token is real; padding is not attended to and carries no loss.
        bands: who attends to whom in every block, at least one.

    Raises:
        SpecError: if shapes do not fit or there is no block.
    """
    if read.shape != mask.shape or not bands:
        raise SpecError(
            f"Reach needs two masks of one shape and at least one block, got {tuple(read.shape)}, {tuple(mask.shape)}, "
            f"{len(bands)} blocks."
        )
    reaches: list[Reach] = []
    output = read & mask
    for band in reversed(bands):
        visible = band.visible(mask)
        queries = output & (visible.sum(-1) >= 2)
        reaches.append(
            Reach(
                output=output,
                queries=queries,
                keys=_attended_from(queries, visible),
                values=_attended_from(output, visible),
                visible=visible,
            )
        )
        output = output | reaches[-1].values
    return tuple(reversed(reaches))


def _attended_from(rows: Places, visible: Bool[Tensor, "batch query key"]) -> Places:
    return (rows.unsqueeze(-1) & visible).any(dim=1)


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
    contexts: set[tuple[int, int, tuple[int, ...]]] = set()
    for row, sees, lit in zip(ids.tolist(), visible.tolist(), within.tolist(), strict=True):
        for place, (seen, inside) in enumerate(zip(sees, lit, strict=True)):
            if inside:
                places = [j for j, real in enumerate(seen) if real]
                contexts.add((place - places[0], places[0] if positional else 0, tuple(row[j] for j in places)))
    return len(contexts)
