"""Which of the recovered tokens are right, token by token, by the plainest rule a reader can check by eye. This
colors the page; the scores come from the records. Must not know markup.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import Enum


class Match(Enum):
    """How one token fared. The value is the class of the style sheet."""

    PLACE = "p"
    """Recovered in its position."""
    ELSEWHERE = "e"
    """Recovered, in another position (or in a bag without positions)."""
    WRONG = "w"
    """Proposed, but not in the private record."""
    MISSING = "m"
    """In the private record, but not proposed."""


def in_order(truth: Sequence[int], guess: Sequence[int]) -> tuple[tuple[Match, ...], tuple[Match, ...]]:
    """Marks of the truth and of the guess; equal positions first, the rest one-to-one as multisets."""
    same = {i for i, (a, b) in enumerate(zip(truth, guess, strict=False)) if a == b}
    truth_marks = _mark(truth, Counter(t for i, t in enumerate(guess) if i not in same), Match.MISSING, same)
    guess_marks = _mark(guess, Counter(t for i, t in enumerate(truth) if i not in same), Match.WRONG, same)
    return truth_marks, guess_marks


def as_bag(
    truths: Sequence[Sequence[int]], bag: Sequence[int]
) -> tuple[tuple[tuple[Match, ...], ...], tuple[Match, ...]]:
    """Marks of every truth and of a bag of tokens that belongs to all of them together."""
    left = Counter(bag)
    truth_marks = tuple(_take(truth, left, Match.MISSING) for truth in truths)
    return truth_marks, _take(bag, Counter(token for truth in truths for token in truth), Match.WRONG)


def _mark(tokens: Sequence[int], others: Counter[int], otherwise: Match, same: set[int]) -> tuple[Match, ...]:
    rest = iter(_take([token for i, token in enumerate(tokens) if i not in same], others, otherwise))
    return tuple(Match.PLACE if i in same else next(rest) for i in range(len(tokens)))


def _take(tokens: Sequence[int], available: Counter[int], otherwise: Match) -> tuple[Match, ...]:
    marks: list[Match] = []
    for token in tokens:
        found = available[token] > 0
        available[token] -= int(found)
        marks.append(Match.ELSEWHERE if found else otherwise)
    return tuple(marks)
