"""The prior-only baseline: a function of public facts, and the best guess that its corpus allows."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak.core.attack import Status
from gradleak.core.batch import Batch
from gradleak.core.errors import DataError
from gradleak.harness.judging.prior_only import prior_only
from gradleak.models.tokenizer import ByteTokenizer

pytestmark = pytest.mark.property

TOKENIZER = ByteTokenizer()
SPECIAL = TOKENIZER.special_ids
corpora = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=5)


@given(corpora, st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_no_guess_of_its_length_has_a_higher_recall_on_the_corpus(corpus: list[str], batch_size: int) -> None:
    found = prior_only("text", batch_size=batch_size, seq_len=12, tokenizer=TOKENIZER, corpus_texts=corpus)
    assert len(found.records) == batch_size
    guess = [token for token in found.records[0].tolist() if token not in SPECIAL]

    def hits(tokens: tuple[int, ...]) -> int:
        return sum((Counter(tokens) & Counter(text.encode())).total() for text in corpus)

    best = max(hits(tokens) for tokens in itertools.combinations_with_replacement(b"abc", len(guess)))
    assert hits(tuple(guess)) == best


def test_it_guesses_the_most_frequent_tokens_in_the_tokenizers_frame() -> None:
    corpus = ["bba", "bbac", "bb"]
    found = prior_only("text", batch_size=2, seq_len=12, tokenizer=TOKENIZER, corpus_texts=corpus)
    expected = [TOKENIZER.begin_id, *b"bba", TOKENIZER.end_id]
    assert [record.tolist() for record in found.records] == [expected, expected]
    assert found.status is Status.CONVERGED


def test_the_padded_length_limits_the_guess() -> None:
    found = prior_only("text", batch_size=1, seq_len=4, tokenizer=TOKENIZER, corpus_texts=["abcabcabc"])
    assert len(found.records[0]) == 4


@pytest.mark.parametrize("corpus", [[], ["", ""]])
def test_without_public_text_it_proposes_nothing(corpus: list[str]) -> None:
    found = prior_only("text", batch_size=2, seq_len=8, tokenizer=TOKENIZER, corpus_texts=corpus)
    assert (found.status, found.records) == (Status.NOTHING_FOUND, ())


def test_images_are_the_public_mean_or_mid_gray() -> None:
    public = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = prior_only("image", batch_size=2, shape=(3, 4, 4), corpus_images=public)
    assert len(found.records) == 2
    torch.testing.assert_close(found.records[0], public.mean(dim=0))
    gray = prior_only("image", batch_size=1, shape=(3, 4, 4))
    assert torch.equal(gray.records[0], torch.full((3, 4, 4), 0.5))


def test_it_takes_no_batch() -> None:
    hints = [str(parameter.annotation) for parameter in inspect.signature(prior_only).parameters.values()]
    assert all(Batch.__name__ not in hint for hint in hints)


def test_missing_facts_are_named() -> None:
    with pytest.raises(DataError, match="needs their shape"):
        prior_only("image", batch_size=1)
    with pytest.raises(DataError, match="needs the tokenizer"):
        prior_only("text", batch_size=1, seq_len=4)
    with pytest.raises(DataError, match="public images have shape"):
        prior_only("image", batch_size=1, shape=(1, 2, 2), corpus_images=torch.zeros(1, 1, 3, 3))
