"""The n-gram prior against counts by hand."""

from __future__ import annotations

from collections import Counter
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


def test_a_count_looks_at_three_tokens_and_at_no_more() -> None:
    """After 0 1 always comes 2, after 3 1 always 0: only counts of three tokens tell. Four would tell 5 0 1 from 4 0 1."""
    model = NGram.of([[0, 1, 2], [3, 1, 0], [0, 1, 2], [3, 1, 0], [5, 0, 1, 4]], vocab_size=6)
    after = {prefix: model.following(torch.tensor([prefix]))[0] for prefix in ((0, 1), (3, 1), (5, 0, 1), (4, 0, 1))}
    assert int(after[0, 1].argmax()) == 2 and int(after[3, 1].argmax()) == 0
    assert torch.equal(after[5, 0, 1], after[0, 1]) and torch.equal(after[4, 0, 1], after[0, 1])


def discounted(texts: list[list[int]], context: tuple[int, ...], token: int, vocab: int) -> float:
    """p(token | context) by the formula, every count made by looking through the texts again."""
    spans = [tuple(t[i : i + len(context) + 1]) for t in texts for i in range(len(t) - len(context))]
    tally = Counter(spans)
    if context and not any(span[:-1] == context for span in tally):
        return discounted(texts, context[1:], token, vocab)
    once, twice = list(tally.values()).count(1), list(tally.values()).count(2)
    d = once / (once + 2 * twice) if once and twice else 0.5
    after = {span[-1]: count for span, count in tally.items() if span[:-1] == context}
    total = sum(after.values())
    shorter = discounted(texts, context[1:], token, vocab) if context else 1 / vocab
    return max(after.get(token, 0) - d, 0) / total + d * len(after) / total * shorter


def test_probabilities_are_those_of_the_formula() -> None:
    texts = [[0, 1, 2, 0, 1], [3, 1, 0], [0, 1, 2], [2, 2, 1, 0], [5, 0, 1, 4]]
    model = NGram.of(texts, vocab_size=6)
    for context in product(range(6), repeat=2):
        wanted = [discounted(texts, context, token, 6) for token in range(6)]
        assert model.following(torch.tensor([context])).exp()[0].tolist() == pytest.approx(wanted)


def test_each_token_is_given_by_what_stands_before_it() -> None:
    texts = [[0, 1, 2, 0, 1], [2, 2, 1], [3, 0, 1, 2]]
    model, text = NGram.of(texts, vocab_size=5), torch.tensor([[3, 0, 1, 2, 0, 1, 4]])
    one_by_one = [float(model.following(text[:, :p])[0, text[0, p]]) for p in range(text.shape[1])]
    assert model.each(text)[0].tolist() == pytest.approx(one_by_one)
