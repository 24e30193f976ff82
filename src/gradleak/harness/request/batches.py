"""A batch that the caller holds, in any of the shapes that texts, tokenizers and image processors give, becomes the batch of
the core. Must not know what is done with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import DataError
from gradleak.core.rng import derive
from gradleak.harness.request.data import Pool, draw_batch
from gradleak.models import Subject

Records = Batch | Sequence[str] | Mapping[str, Any]
"""Private texts; or what a tokenizer or an image processor returns, with ``"labels"``; or a ``Batch``."""


def read_batch(batch: Records, subject: Subject, *, max_length: int, seed: int) -> Batch:
    """The private batch as the core holds it. Labels that are not given are drawn, or the text itself for language models.

    Raises:
        DataError: if it is empty or lacks what the model takes.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Mapping):
        return _from_mapping(batch, subject, seed=seed)
    texts = tuple(batch)
    if isinstance(batch, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError("The batch must hold at least one text, and no empty ones. Leave the empty ones out.")
    pool = Pool(name="given", texts=texts, images=None, labels=None, label_names=None, fingerprint="")
    rng = derive(seed, "batch", 0)
    return draw_batch(pool, subject, batch_size=len(texts), max_length=max_length, rng=rng)[0]


def _from_mapping(batch: Mapping[str, Any], subject: Subject, *, seed: int) -> Batch:
    key = "pixel_values" if subject.modality == "image" else "input_ids"
    if key not in batch:
        raise DataError(
            f"The batch lacks {key!r}, which {subject.name} takes. It has: {', '.join(map(str, batch)) or 'nothing'}."
        )
    inputs = torch.as_tensor(batch[key])
    if subject.modality == "image":
        mask = torch.ones(inputs.shape[0], dtype=torch.bool)
    else:
        given = batch.get("attention_mask")
        mask = torch.ones_like(inputs, dtype=torch.bool) if given is None else torch.as_tensor(given).bool()
    labels = batch.get("labels")
    return Batch(
        inputs=inputs,
        mask=mask,
        labels=torch.as_tensor(labels) if labels is not None else _labels(inputs, mask, subject, seed=seed),
    )


def _labels(inputs: Tensor, mask: Tensor, subject: Subject, *, seed: int) -> Tensor:
    if subject.loss.labels_records:
        return subject.loss.random_labels(inputs, subject.classes, derive(seed, "labels"))
    labels = subject.loss.labels_from(inputs, mask)
    if labels is None:
        raise DataError(
            "A masked-LM batch needs 'labels': the hidden tokens, -100 elsewhere. Pass texts to have them drawn."
        )
    return labels
