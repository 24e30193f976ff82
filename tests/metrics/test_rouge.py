"""ROUGE against the reference implementation."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from gradleak.metrics._rouge import rouge_l, rouge_n, words

pytestmark = pytest.mark.oracle


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
