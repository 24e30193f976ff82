"""Tokenizers against the library and against bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from gradleak.models import ByteTokenizer
from gradleak.models.tokenizer import demo_model_path, fallback_tokenizer, load_tokenizer

pytestmark = pytest.mark.oracle


def minilm_folder() -> Path:
    folder = demo_model_path()
    assert folder is not None, "the tests need the demo extra"
    return folder


@pytest.mark.parametrize("max_length", (32, 6))
def test_wordpiece_is_the_library_s(max_length: int) -> None:
    reference: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(minilm_folder())
    texts = ["Please call me back.", "The biopsy result came back positive, book the surgery!"]
    expected = reference(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    ours = load_tokenizer(minilm_folder(), name="minilm")
    ids, mask = ours.encode(texts, max_length)
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"].bool())
    assert (ours.pad_id, ours.mask_id, ours.vocab_size) == (0, 103, 30522)
    assert ours.decode(ours.encode(["call me now"], 20)[0][0]) == "call me now"


def test_bytes_come_back_as_they_went() -> None:
    tokenizer = ByteTokenizer()
    text = "Grüße, 3 €!"
    ids, mask = tokenizer.encode([text, "a"], 64)
    assert tokenizer.decode(ids[0]) == text and tokenizer.decode(ids[1]) == "a"
    assert ids[1].tolist()[:3] == [257, 97, 258] and int(mask[1].sum()) == 3
    assert tokenizer.encode(["abcdef"], 5)[0].tolist() == [[257, 97, 98, 99, 258]]


def test_the_fallback_is_the_largest_tokenizer_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fallback_tokenizer().name == "minilm-wordpiece"
    assert fallback_tokenizer(30522).name == "minilm-wordpiece"
    assert fallback_tokenizer(30521).name == "bytes"
    monkeypatch.setattr("gradleak.models.tokenizer.DEMO_PACKAGE", "a_package_that_is_not_there")
    assert fallback_tokenizer().name == "bytes"
