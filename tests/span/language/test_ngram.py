"""The n-gram prior against counts by hand."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from gradleak.span.language.ngram import NGram

pytestmark = pytest.mark.oracle


def test_counts_by_hand() -> None:
    """Texts 0 1, 0 1, 0 2: after 0 comes 1 twice and 2 once; every D is n1 / (n1 + 2 n2)."""
    model = NGram.of([[0, 1], [0, 1], [0, 2]], vocab_size=4)
    alone, after = 1 / (1 + 2 * 1), 1 / (1 + 2 * 1)  # counts 3, 2, 1 of single tokens; 2, 1 after 0
    single = {t: max(c - alone, 0) / 6 + alone * 3 / 6 / 4 for t, c in {0: 3, 1: 2, 2: 1, 3: 0}.items()}
    paired = {t: max(c - after, 0) / 3 + after * 2 / 3 * single[t] for t, c in {0: 0, 1: 2, 2: 1, 3: 0}.items()}
    assert model.following(torch.empty(1, 0, dtype=torch.int64)).exp()[0].tolist() == pytest.approx([*single.values()])
    assert model.following(torch.tensor([[0]])).exp()[0].tolist() == pytest.approx([*paired.values()])


def test_all_texts_of_one_length_sum_to_one() -> None:
    model = NGram.of([[0, 1, 2, 0, 1], [2, 2, 1]], vocab_size=4)
    texts = torch.tensor(list(product(range(4), repeat=4)))
    assert float(model.each(texts).sum(1).exp().sum()) == pytest.approx(1.0)
