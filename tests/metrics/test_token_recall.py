"""Text metrics against independent references: rouge-score, exhaustive enumeration, the textbook table of the LCS."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from gradleak.core.metric import Comparison
from gradleak.metrics._rouge import rouge_l, rouge_n, words
from gradleak.metrics._sequence import lcs_length
from gradleak.metrics.exact_match import ExactMatch
from gradleak.metrics.identification_rank import IdentificationRank
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


TEXTS = (
    "The invoice #4471 for Ms. O'Brien is due on 2024-05-03; please pay it, please.",
    "please pay the invoice (4471) before May: O'Brien is waiting",
    "Naïve café, straße — 数据 mixed with ASCII words 42",
    "one",
    "one one one two",
    "...",
    "",
)


@pytest.mark.parametrize("truth", TEXTS)
@pytest.mark.parametrize("guess", TEXTS)
def test_rouge_equals_the_reference_on_texts(truth: str, guess: str) -> None:
    _agrees_with_reference(truth, guess)


def test_rouge_equals_the_reference_on_random_word_sequences() -> None:
    source = random.Random(7)
    for _ in range(200):
        draw = [
            " ".join(source.choices(["a", "b", "c", "d", "e10", "f's", "G-h"], k=source.randint(0, 12)))
            for _ in range(2)
        ]
        _agrees_with_reference(*draw)


def _agrees_with_reference(truth: str, guess: str) -> None:
    reference = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(truth, guess)
    left, right = words(truth), words(guess)
    assert rouge_n(left, right, 1) == pytest.approx(reference["rouge1"].fmeasure, abs=1e-9)
    assert rouge_n(left, right, 2) == pytest.approx(reference["rouge2"].fmeasure, abs=1e-9)
    assert rouge_l(left, right) == pytest.approx(reference["rougeL"].fmeasure, abs=1e-9)


def test_lcs_equals_the_textbook_table() -> None:
    source = random.Random(11)
    for _ in range(300):
        left, right = ([source.randrange(4) for _ in range(source.randint(0, 80))] for _ in range(2))
        table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
        for i, j in itertools.product(range(len(left)), range(len(right))):
            step = table[i][j] + 1 if left[i] == right[j] else max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = step
        assert lcs_length(left, right) == table[-1][-1]


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


def test_chance_of_accuracy_and_exact_match_equal_the_mean_over_every_guess() -> None:
    truth, vocabulary = ids(0, 1, 1), 4
    given = [
        comparison([truth], [ids(*guess)], vocab_size=vocabulary, special_ids=frozenset({3, 77}))
        for guess in itertools.product(range(vocabulary - 1), repeat=3)
    ]
    for metric in (TokenAccuracy(), ExactMatch()):
        mean = sum(metric.values(one)[0] for one in given) / len(given)
        assert metric.chance(given[0]) == pytest.approx(mean, abs=1e-12)


def test_token_accuracy_scores_content_positions_only() -> None:
    truth = ids(90, 1, 2, 3, 91)
    guesses: dict[tuple[int, ...], float] = {
        (90, 1, 2, 3, 91): 1.0,
        (90, 1, 9, 3, 91, 5, 6): 2 / 3,
        (1, 2, 3): 0.0,
        (90, 1): 1 / 3,
        (7, 1, 2, 3): 1.0,
        (): 0.0,
    }
    for guess, expected in guesses.items():
        given = comparison([ids(1, 2, 3)], [ids(*guess)], aligned=[(truth, ids(*guess))])
        assert TokenAccuracy().values(given) == [pytest.approx(expected, abs=1e-12)]
    assert TokenAccuracy().values(comparison([ids(1)], [None], aligned=[(truth, None)])) == [0.0]


def test_exact_match_forgives_nothing() -> None:
    truth = ids(1, 2, 3)
    guesses = [ids(1, 2, 3), ids(1, 2), ids(1, 2, 3, 4), ids(2, 1, 3), None]
    given = comparison([truth] * 5, list(guesses))
    assert ExactMatch().values(given) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_records_without_content_have_no_value() -> None:
    given = comparison([ids(), ids(1)], [None, ids(1)], aligned=[(ids(90, 91), None), (ids(1), ids(1))])
    for metric in (TokenRecall(), TokenAccuracy(), ExactMatch()):
        assert metric.values(given) == [1.0]


def test_identification_rank_by_hand() -> None:
    truth, near, far, same_bag = ids(1, 2, 3, 4), ids(1, 2, 3, 9), ids(7, 8), ids(4, 3, 2, 1)
    rank = IdentificationRank()
    # Likeness to (1, 2, 3): truth 6/7 + 6/7, near the same, same_bag 6/7 + 2/7, far 0.
    assert rank.values(comparison([truth], [ids(1, 2, 3)], decoys=(near, far, same_bag))) == [1.5]
    assert rank.values(comparison([truth], [ids(7, 8)], decoys=(near, far))) == [2.5]
    assert rank.values(comparison([truth], [truth], decoys=(near, far, same_bag))) == [1.0]
    assert rank.values(comparison([truth], [truth])) == []
    assert rank.chance(comparison([truth], [truth])) is None


def test_identification_chance_is_the_rank_of_a_blind_guess() -> None:
    decoys = tuple(ids(token) for token in range(2, 7))
    given = comparison([ids(1)], [None], decoys=decoys)
    blind = math.fsum(range(1, len(decoys) + 2)) / (len(decoys) + 1)
    assert IdentificationRank().chance(given) == blind
    assert IdentificationRank().values(given) == [blind]


def test_a_bag_identifies_each_record_of_a_large_batch() -> None:
    truths = [ids(*range(10 * k, 10 * k + 4)) for k in range(8)]
    bag = torch.cat(truths)
    decoy = ids(*range(0, 80, 10), 1, 11, 200, 201, 202, 203, 204, 205)
    given = comparison(truths, [bag, *[None] * 7], decoys=(decoy,), ordered=False, vocab_size=300)
    assert IdentificationRank().values(given) == [1.0] * 8
