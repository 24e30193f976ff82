"""Frozen blocks share the upper blocks and the head as they were."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.defenses.frozen_blocks import FrozenBlocks
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TINY, "vocab_size": 300, "max_position_embeddings": 16}
MODELS = {
    "bert": ("classification", TEXT),
    # Its activation brings a backward of its own, which torch cannot vectorize.
    "bloom": ("classification", {**TINY, "vocab_size": 300}),
    "distilbert": ("classification", TEXT),
    "gpt2": ("causal-lm", TEXT),
    "llama": ("causal-lm", TEXT),
    "mixtral": ("classification", TEXT),
    "opt": ("classification", TEXT),
    "vit": ("classification", {**TINY, "image_size": 8, "patch_size": 4}),
}


@cache
def subject_of(kind: str) -> Subject:
    loss, settings = MODELS[kind]
    subject = load_subject(f"random:{kind}", loss=loss, settings=settings)
    subject.module.double()
    return subject


def batch_of(kind: str, size: int = 4, *, padded: bool = True) -> Batch:
    rng = derive(0, kind)
    if kind == "vit":
        pixels = torch.rand(size, *subject_of(kind).pixel_shape, generator=rng, dtype=torch.float64)
        return Batch(inputs=pixels, mask=torch.ones(size, dtype=torch.bool), labels=torch.arange(size) % 2)
    ids = torch.randint(10, 200, (size, 7), generator=rng)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        mask[1, 4:] = mask[3, 4:] = mask[2, 6:] = False
    labels = torch.arange(size) % 2 if MODELS[kind][0] == "classification" else ids.masked_fill(~mask, -100)
    return Batch(inputs=ids, mask=mask, labels=labels)


def trainer_of(kind: str, **training: object) -> ClientTrainer:
    return ClientTrainer(subject=subject_of(kind), training=LocalTraining(**training))  # type: ignore[arg-type]


def assert_close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], rtol: float = 1e-6) -> None:
    assert left.keys() == right.keys()
    size = max(float(t.detach().abs().max()) for t in right.values())
    for name in right:
        torch.testing.assert_close(left[name].to(right[name]), right[name], rtol=rtol, atol=rtol * size, msg=name)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit", "llama"])
def test_frozen_blocks_shares_the_upper_blocks_and_the_head_as_they_were(kind: str) -> None:
    trainer, batch = trainer_of(kind), batch_of(kind, padded=False)
    changed = trainer.deploy((FrozenBlocks(blocks=1),))
    plain, released = (each.update(batch, derive(0, "x")) for each in (trainer, changed))
    assert_close(released, {name: plain[name] for name in released})
    below, above = trainer.subject.anatomy.blocks
    assert all(linear.weight in released for linear in above.maps())
    assert not any(linear.weight in released for linear in below.maps())
    head = trainer.subject.anatomy.head
    assert head is not None and (head.weight in released) != trainer.subject.anatomy.tied
    assert not trainer.subject.frozen, "the given subject stays as it is"
