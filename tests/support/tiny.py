"""Models so small that a test is done before it is noticed, and batches for them."""

from __future__ import annotations

from typing import Any

import torch

from gradleak.core.batch import IGNORED, Batch
from gradleak.core.rng import derive
from gradleak.models import Subject, load_subject

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION: dict[str, Any] = {**SIZES, "hidden_size": 16, "image_size": 8, "patch_size": 4}


def text_model(kind: str = "gpt2", *, loss: Any = "classification", classes: int = 3, **settings: Any) -> Subject:
    """A random text model of that architecture with two blocks of width 32."""
    classes_given = {"classes": classes} if loss == "classification" else {}
    return load_subject(f"random:{kind}", loss=loss, settings={**SIZES, **settings}, **classes_given)


def image_model(kind: str = "vit", **settings: Any) -> Subject:
    """A random vision transformer on 8 × 8 pixels in patches of 4."""
    return load_subject(f"random:{kind}", settings={**VISION, **settings})


def text_batch(subject: Subject, lengths: tuple[int, ...] = (5, 3), *, seed: int = 0) -> Batch:
    """Random tokens, padded behind, with random labels; the tokens themselves for a causal language model."""
    rng = derive(seed, "tiny batch")
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(5, subject.anatomy.vocab_size, mask.shape, generator=rng).masked_fill(~mask, 0)
    if subject.loss.labels_records:
        labels = torch.randint(subject.classes, (len(lengths),), generator=rng)
    else:
        labels = ids.masked_fill(~mask, IGNORED)
    return Batch(inputs=ids, mask=mask, labels=labels)


def image_batch(subject: Subject, records: int = 2, *, seed: int = 0) -> Batch:
    """Uniform pixels with random labels."""
    rng = derive(seed, "tiny batch")
    pixels = torch.rand(records, *subject.pixel_shape, generator=rng)
    labels = torch.randint(subject.classes, (records,), generator=rng)
    return Batch(inputs=pixels, mask=torch.ones(records, dtype=torch.bool), labels=labels)
