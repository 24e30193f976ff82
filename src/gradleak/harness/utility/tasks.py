"""What a defense costs in accuracy is measured on a task that a tiny transformer learns in seconds. Two are here,
both with held-out data and a known chance level. Must not know defenses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gradleak.core.batch import Batch, Modality
from gradleak.core.errors import DataError, UnknownNameError
from gradleak.core.loss import CLASSIFICATION
from gradleak.core.rng import derive
from gradleak.models import Subject, load_subject

TOPICS, TOPIC_WORDS, COMMON_WORDS, LENGTH, TOPICAL_SHARE = 4, 12, 16, 12, 0.4
TOPIC_RECORDS, DIGIT_CLASSES, HELD_OUT = 1200, 10, 400
_SIZES: Mapping[str, object] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A model to train, records to train on, and records that no client ever sees.

    Attributes:
        chance: accuracy of a guess that ignores the input.
        description: one sentence for the reader.
    """

    name: str
    description: str
    subject: Subject
    train: Batch
    test: Batch
    chance: float


def make_task(name: str, seed: int) -> Task:
    """The task of that name; weights and split are functions of ``seed``, so that they are the same for every defense.

    Raises:
        UnknownNameError: for a name that is not in ``TASKS``.
        DataError: if the task's data are not installed.
    """
    if name not in TASKS:
        raise UnknownNameError("utility task", name, TASKS)
    return TASKS[name](seed)


def _topics(seed: int) -> Task:
    """Messages of ``LENGTH`` words: with probability ``TOPICAL_SHARE`` a word of the message's topic, else a common one
    or, half as often, a word of any topic. The label is the topic.
    """
    rng = derive(seed, "utility", "topics")
    labels = torch.randint(TOPICS, (TOPIC_RECORDS,), generator=rng)
    shape = (TOPIC_RECORDS, LENGTH)
    first = 16
    own = first + labels.unsqueeze(1) * TOPIC_WORDS + torch.randint(TOPIC_WORDS, shape, generator=rng)
    others = first + torch.randint(TOPICS * TOPIC_WORDS, shape, generator=rng)
    common = first + TOPICS * TOPIC_WORDS + torch.randint(COMMON_WORDS, shape, generator=rng)
    kind = torch.rand(shape, generator=rng)
    rest = torch.where(kind < TOPICAL_SHARE + (1 - TOPICAL_SHARE) / 3, others, common)
    inputs = torch.where(kind < TOPICAL_SHARE, own, rest)
    settings = {**_SIZES, "num_hidden_layers": 1, "vocab_size": 320, "max_position_embeddings": LENGTH}
    return Task(
        name="topics",
        description=f"synthetic messages of {LENGTH} words on {TOPICS} topics, a one-layer text encoder of width 32",
        subject=load_subject("random:bert", loss=CLASSIFICATION.name, classes=TOPICS, settings=settings, seed=seed),
        train=_batch(inputs[HELD_OUT:], labels[HELD_OUT:]),
        test=_batch(inputs[:HELD_OUT], labels[:HELD_OUT]),
        chance=1 / TOPICS,
    )


def _digits(seed: int) -> Task:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "The utility task 'digits' reads the handwritten digits of scikit-learn, which is not installed: "
            "pip install scikit-learn."
        ) from error
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=derive(seed, "utility", "digits"))
    images, labels = images[order], labels[order]
    settings = {**_SIZES, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4, "num_channels": 1}
    return Task(
        name="digits",
        description="handwritten digits of 8×8 pixels, a two-layer vision transformer of width 32",
        subject=load_subject(
            "random:vit", loss=CLASSIFICATION.name, classes=DIGIT_CLASSES, settings=settings, seed=seed
        ),
        train=_batch(images[HELD_OUT:], labels[HELD_OUT:]),
        test=_batch(images[:HELD_OUT], labels[:HELD_OUT]),
        chance=1 / DIGIT_CLASSES,
    )


def _batch(inputs: Tensor, labels: Tensor) -> Batch:
    shape = inputs.shape[:1] if inputs.is_floating_point() else inputs.shape
    return Batch(inputs=inputs, mask=torch.ones(shape, dtype=torch.bool), labels=labels)


TASKS: Mapping[str, Callable[[int], Task]] = MappingProxyType({"topics": _topics, "digits": _digits})
DEFAULT_TASK: Mapping[Modality, str] = MappingProxyType({"text": "topics", "image": "digits"})
