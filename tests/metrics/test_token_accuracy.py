"""Token accuracy by hand, and its chance level by enumeration of every guess."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from gradleak.core.metric import Comparison
from gradleak.metrics.exact_match import ExactMatch
from gradleak.metrics.token_accuracy import TokenAccuracy

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
