"""MixUp mixes images and labels by the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses.mixup import Mixup
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECOYS = 24


@pytest.fixture(scope="module")
def trainer() -> ClientTrainer:
    subject = load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4})
    return ClientTrainer(subject=subject, training=LocalTraining())


def pixels_of(trainer: ClientTrainer, seed: int) -> Tensor:
    return torch.rand(4 + DECOYS, *trainer.subject.pixel_shape, generator=derive(seed, "pixels"))


def client_of(trainer: ClientTrainer, seed: int = 0, size: int = 4) -> Client:
    pixels = pixels_of(trainer, seed)[:size]
    batch = Batch(inputs=pixels, mask=torch.ones(size, dtype=torch.bool), labels=torch.arange(size) % 2)
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer)


def test_images_and_labels_are_mixed_by_the_same_weights(trainer: ClientTrainer) -> None:
    """The weights that least squares reads off the images make the labels."""
    client = client_of(trainer)
    data = Mixup().apply(client, derive(1, "mix"))
    weights = torch.linalg.lstsq(client.data.inputs.flatten(1).T, data.inputs.flatten(1).T).solution.T
    torch.testing.assert_close(weights.sum(1), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(weights @ client.data.targets, data.targets, atol=1e-4, rtol=0)
    assert not torch.equal(data.inputs, Mixup().apply(client, derive(2, "mix")).inputs)
