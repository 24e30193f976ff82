"""Which lengths the sentences of a batch may have, as far as mask, closing token and candidates tell.
Must not know how sentences are searched."""

from __future__ import annotations

from gradleak.span.candidates.types import Candidates
from gradleak.span.reading.evidence import AttackInput


def lengths_of_sentences(case: AttackInput, candidates: Candidates, closing: int | None) -> tuple[int, ...]:
    """Lengths that sentences may have: known ones; those where the closing token fits; else all, longest first."""
    filled = 0
    for ids in candidates.tokens:
        if not ids.numel():
            break
        filled += 1
    mask = case.view.get("mask")
    if mask is not None:
        return tuple(n for n in sorted({int(row.sum()) for row in mask}) if n <= filled)
    ends = [] if closing is None else [p + 1 for p in range(filled) if bool((candidates.tokens[p] == closing).any())]
    return tuple(ends) or tuple(range(filled, 0, -1))
