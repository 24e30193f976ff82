"""Token recall by hand, and its chance level by enumeration of every guess."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from gradleak.core.metric import Comparison
from gradleak.metrics.exact_match import ExactMatch
from gradleak.metrics.token_accuracy import TokenAccuracy
from gradleak.metrics.token_recall import TokenRecall

pytestmark = pytest.mark.oracle

SPECIAL = frozenset({90, 91})


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def comparison(
    truth: list[Tensor],
    guess: list[Tensor | None],
    *,
    aligned: list[tuple[Tensor, Tensor | None]] | None = None,
    ordered: bool = True,
    decoys: tuple[Tensor, ...] = (),
    vocab_size: int = 12,
    special_ids: frozenset[int] = SPECIAL,
) -> Comparison:
    return Comparison(
        truth=tuple(truth),
        guess=tuple(guess),
        aligned=tuple(aligned or zip(truth, guess, strict=True)),
        extras=(),
        ordered=ordered,
        decoys=decoys,
        special_ids=special_ids,
        vocab_size=vocab_size,
        decode=str,
    )


def test_token_recall_by_hand() -> None:
    pairs = comparison([ids(1, 1, 2, 3), ids(4, 5)], [ids(1, 2, 2, 7, 8), None])
    assert TokenRecall().values(pairs) == [0.5, 0.0]


def test_bag_recall_is_the_mean_over_every_order_of_spending_the_bag() -> None:
    truths, bag = [[1, 1, 2], [1, 2, 3]], [1, 1, 2, 9]
    slots = [(record, token) for record, tokens in enumerate(truths) for token in tokens]
    totals = [0.0, 0.0]
    orders = list(itertools.permutations(slots))
    for order in orders:
        left = Counter(bag)
        for record, token in order:
            if left[token] > 0:
                left[token] -= 1
                totals[record] += 1.0 / len(truths[record])
    expected = [total / len(orders) for total in totals]
    given = comparison([ids(*tokens) for tokens in truths], [ids(*bag), None], ordered=False)
    values = TokenRecall().values(given)
    assert values == pytest.approx(expected, abs=1e-12)
    covered = (Counter(bag) & Counter(token for tokens in truths for token in tokens)).total()
    weighted = sum(value * len(tokens) for value, tokens in zip(values, truths, strict=True))
    assert weighted == pytest.approx(covered, abs=1e-12)


def test_recall_chance_equals_the_mean_over_every_guess() -> None:
    truth, vocabulary = [0, 0, 1], 3
    guesses = list(itertools.product(range(vocabulary), repeat=len(truth)))
    hits = [(Counter(truth) & Counter(guess)).total() / len(truth) for guess in guesses]
    given = comparison([ids(*truth)], [None], vocab_size=vocabulary)
    assert TokenRecall().chance(given) == pytest.approx(sum(hits) / len(hits), abs=1e-12)


def test_recall_chance_rises_with_the_size_of_the_proposal() -> None:
    truth, vocabulary = [0, 1], 3
    for draws in (4, 6):
        guesses = list(itertools.product(range(vocabulary), repeat=draws))
        expected = sum((Counter(truth) & Counter(guess)).total() for guess in guesses) / len(truth) / len(guesses)
        for ordered in (True, False):
            given = comparison([ids(*truth)], [ids(*[2] * draws)], vocab_size=vocabulary, ordered=ordered)
            assert TokenRecall().chance(given) == pytest.approx(expected, abs=1e-12)


def test_chance_of_bag_recall_equals_the_mean_over_every_bag() -> None:
    truths, vocabulary = [[0, 0], [0, 1]], 3
    given = [
        comparison([ids(*t) for t in truths], [ids(*bag), None], ordered=False, vocab_size=vocabulary)
        for bag in itertools.product(range(vocabulary), repeat=4)
    ]
    mean = sum(sum(TokenRecall().values(one)) / 2 for one in given) / len(given)
    assert TokenRecall().chance(given[0]) == pytest.approx(mean, abs=1e-12)


def test_records_without_content_have_no_value() -> None:
    given = comparison([ids(), ids(1)], [None, ids(1)], aligned=[(ids(90, 91), None), (ids(1), ids(1))])
    for metric in (TokenRecall(), TokenAccuracy(), ExactMatch()):
        assert metric.values(given) == [1.0]
