"""Which tokens are colored as right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradleak.report.page.coloring import Match, as_bag, in_order

pytestmark = pytest.mark.contract

P, E, W, M = Match.PLACE, Match.ELSEWHERE, Match.WRONG, Match.MISSING
TOKENS = st.lists(st.integers(0, 4), max_size=8)


def test_marks_by_hand() -> None:
    assert in_order([1, 2, 3, 4], [1, 3, 9]) == ((P, M, E, M), (P, E, W))


def test_a_repeated_proposal_counts_once() -> None:
    assert in_order([7, 1, 2], [7, 7, 7]) == ((P, M, M), (P, W, W))


def test_bag_is_shared_among_records() -> None:
    assert as_bag([[1, 2], [2, 3]], [2, 3, 8]) == (((M, E), (M, E)), (E, E, W))


@given(truth=TOKENS, guess=TOKENS)
def test_both_sides_agree_on_how_many_match(truth: list[int], guess: list[int]) -> None:
    ours, theirs = in_order(truth, guess)
    assert (len(ours), len(theirs)) == (len(truth), len(guess))
    assert ours.count(P) == theirs.count(P) == sum(a == b for a, b in zip(truth, guess, strict=False))
    assert ours.count(E) == theirs.count(E)
    assert ours.count(P) + ours.count(E) == sum(min(truth.count(t), guess.count(t)) for t in set(truth))
