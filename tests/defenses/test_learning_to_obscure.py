"""Learning to Obscure keeps images away from the private ones and teaches more than noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses._obscuring import own_weights, shuffled
from gradleak.defenses.learning_to_obscure import LearningToObscure, distances
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def trainer() -> ClientTrainer:
    subject = load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4, "num_channels": 1})
    return ClientTrainer(subject=subject, training=LocalTraining())


def smooth(count: int, seed: int) -> Tensor:
    """Images without noise: a random plane each."""
    rng = derive(seed, "planes")
    axis = torch.linspace(-1, 1, 8)
    slopes = 0.5 * torch.rand(count, 2, generator=rng) - 0.25
    return (0.5 + slopes[:, :1, None] * axis.view(1, 8, 1) + slopes[:, 1:, None] * axis.view(1, 1, 8)).unsqueeze(1)


def client_of(trainer: ClientTrainer, size: int = 2, seed: int = 0) -> Client:
    batch = Batch(inputs=smooth(size, seed), mask=torch.ones(size, dtype=torch.bool), labels=torch.arange(size) % 2)
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer)


# Learning to Obscure


@pytest.mark.parametrize("match", ["gradient", "step"])
def test_obscured_images_stay_away_and_teach_more_than_noise(trainer: ClientTrainer, match: str) -> None:
    """Judged at ten models that they were not learned with: by the gradient's cosine, or by the loss after a step."""
    client = client_of(trainer, size=4)
    start = torch.rand(client.data.inputs.shape, generator=derive(0, "l"))
    stage = LearningToObscure(match=match)  # type: ignore[arg-type]
    found = stage.apply(client, derive(0, "l")).inputs
    assert float(distances(found, client.data.inputs).min()) > 0.9 * stage.distance
    others = [shuffled(own_weights(trainer), derive(9, "fresh", each)) for each in range(10)]

    def failing(inputs: Tensor) -> float:
        data = replace(client.data, inputs=inputs)
        return sum(float(stage._value(trainer, other, data, client.data).detach()) for other in others)

    assert failing(client.data.inputs) < failing(found) < failing(start)


def test_an_unknown_match_is_refused() -> None:
    with pytest.raises(SpecError, match="Choose gradient or step"):
        LearningToObscure(match="both")  # type: ignore[arg-type]
