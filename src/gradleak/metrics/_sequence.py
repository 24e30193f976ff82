"""The arithmetic of token sequences that several text metrics and the judge share. Must not know the judge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from jaxtyping import Int64
from torch import Tensor

from gradleak.core.metric import Comparison


def counts(ids: Int64[Tensor, " length"] | None) -> Counter[int]:
    """How often each id occurs; nothing for a missing proposal."""
    return Counter() if ids is None else Counter(ids.tolist())


def overlap(left: Counter[int], right: Counter[int]) -> int:
    """Size of the multiset intersection: no copy of a token is counted twice."""
    return (left & right).total()


def harmonic(hits: int, left: int, right: int) -> float:
    """F-measure of ``hits`` common elements between collections of ``left`` and ``right`` elements; 0 if both are empty."""
    return 2.0 * hits / (left + right) if left + right else 0.0


def lcs_length(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    Row by row of the usual table, each row held as the bits of one integer: a zero bit marks a column where the row
    steps up, so one addition with carry advances a whole row, and the answer is the number of zero bits at the end.
    """
    occurrences: dict[Hashable, int] = {}
    for position, symbol in enumerate(left):
        occurrences[symbol] = occurrences.get(symbol, 0) | 1 << position
    full = (1 << len(left)) - 1
    row = full
    for symbol in right:
        steps = row & occurrences.get(symbol, 0)
        row = ((row + steps) | (row - steps)) & full
    return len(left) - row.bit_count()


def content_vocabulary(comparison: Comparison) -> int:
    """Number of token ids that can carry content: the vocabulary without the special ids."""
    return comparison.vocab_size - sum(0 <= special < comparison.vocab_size for special in comparison.special_ids)


def mean(values: Sequence[float]) -> float | None:
    """The mean, summed exactly so that no order of records changes it; None of nothing."""
    return math.fsum(values) / len(values) if values else None
