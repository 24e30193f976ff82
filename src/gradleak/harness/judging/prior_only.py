"""Every score stands beside what guessing recovers with the observation withheld. Must not see the batch.

The prior knows a public corpus of the same kind of data and public facts of the protocol: batch size, padded length,
picture shape. What it scores is not leakage.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import DataError
from gradleak.mechanics.client.framing import Framing
from gradleak.models import Tokenizer

_MID_GRAY = 0.5


def prior_only(
    modality: Modality,
    *,
    batch_size: int,
    seq_len: int | None = None,
    tokenizer: Tokenizer | None = None,
    corpus_texts: Sequence[str] = (),
    shape: tuple[int, int, int] | None = None,
    corpus_images: Float[Tensor, "images channels height width"] | None = None,
) -> Reconstruction:
    """The reconstruction of an adversary without an observation; deterministic.

    Args:
        seq_len: padded length of the batch, for text.
        corpus_texts: public texts, none of them in the batch.
        shape: ``(channels, height, width)`` of a record, for images.
        corpus_images: public images in [0, 1], none of them in the batch, or None for a mid-gray guess.

    Raises:
        DataError: if the facts of the modality are missing.
    """
    if modality == "image":
        if shape is None:
            raise DataError("The prior for images needs their shape (channels, height, width). Pass shape.")
        return _repeat(_mean_image(corpus_images, shape), batch_size)
    if tokenizer is None or seq_len is None:
        raise DataError("The prior for text needs the tokenizer and the padded length. Pass tokenizer and seq_len.")
    record = _majority_text(corpus_texts, tokenizer, seq_len)
    if record is None:
        message = "The public corpus holds no content token to guess from."
        return Reconstruction(status=Status.NOTHING_FOUND, message=message)
    return _repeat(record, batch_size)


def _repeat(record: Tensor, batch_size: int) -> Reconstruction:
    message = "Prior only: guessed from public data, the observation withheld."
    return Reconstruction(records=(record,) * batch_size, status=Status.CONVERGED, message=message)


def _mean_image(images: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
    if images is None or len(images) == 0:
        return torch.full(shape, _MID_GRAY)
    if tuple(images.shape[1:]) != shape:
        raise DataError(f"The public images have shape {tuple(images.shape[1:])}, the records {shape}. Resize them.")
    return images.double().mean(dim=0).float()


def _majority_text(texts: Sequence[str], tokenizer: Tokenizer, seq_len: int) -> Tensor | None:
    """The guess of the corpus's median length that maximizes the expected multiset recall under its unigrams.

    A k-th copy of a token helps in those records that hold at least k copies; the guess takes the (token, k) that help
    in most records, the most frequent first, between the special tokens with which the tokenizer frames a text.
    """
    special = tokenizer.special_ids
    if not texts:
        return None
    ids, mask = tokenizer.encode(texts, seq_len)
    rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
    contents = [[token for token in row if token not in special] for row in rows]
    contents = [content for content in contents if content]
    if not contents:
        return None
    length = int(statistics.median(len(content) for content in contents))
    votes = Counter(
        (token, copy) for content in contents for token, count in Counter(content).items() for copy in range(count)
    )
    ranked = sorted(votes, key=lambda pair: (-votes[pair], pair))
    frame = Framing.of(tokenizer) or Framing(before=(), after=())
    return torch.tensor([*frame.before, *(token for token, _ in ranked[:length]), *frame.after])
