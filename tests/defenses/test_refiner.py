"""Refiner does what it says to images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import DataError
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses._obscuring import gradient_at, own_weights
from gradleak.defenses.learning_to_obscure import distances
from gradleak.defenses.refiner import SYNTHETIC, Refiner, blended, evaluation_network, key_weights, noisiness
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


def cosine(trainer: ClientTrainer, client: Client, inputs: Tensor) -> float:
    """Of the gradient at other inputs to the private one."""
    weights = own_weights(trainer)
    pair = [
        torch.cat([g.flatten() for g in gradient_at(trainer, weights, data, differentiable=False).values()])
        for data in (client.data, replace(client.data, inputs=inputs))
    ]
    return float(torch.cosine_similarity(pair[0], pair[1], dim=0))


# Refiner


def test_the_evaluation_network_reads_the_share_of_noise() -> None:
    """On planes it has never seen; a constant guess has an error of 1/12."""
    network = evaluation_network((1, 8, 8), SYNTHETIC)
    images, shares = blended(smooth(200, 7), 400, derive(1, "blends"))
    assert float((noisiness(network, images) - shares).square().mean()) < 0.02
    ladder = torch.stack([blended(smooth(200, 7), 1, derive(2, "one"))[0][0]])
    noise = torch.rand(ladder.shape, generator=derive(3, "noise"))
    readings = [float(noisiness(network, torch.lerp(smooth(1, 9), noise, share))) for share in (0.0, 0.25, 0.5, 1.0)]
    assert readings == sorted(readings)


def test_the_two_terms_of_refiner_pull_in_opposite_directions(trainer: ClientTrainer) -> None:
    """From the same start the gradient's term leads back to the image, the evaluation network's away from it."""
    client = client_of(trainer, size=1)
    start = torch.lerp(client.data.inputs, torch.rand(client.data.inputs.shape, generator=derive(0, "r")), 0.5)
    back, far = (Refiner(beta=beta).apply(client, derive(0, "r")).inputs for beta in (0.0, 1.0))
    near, middle, away = (float(distances(each, client.data.inputs)) for each in (back, start, far))
    assert near < 0.8 * middle < middle < away


def test_refiner_looks_like_noise_and_keeps_the_direction_of_the_gradient(trainer: ClientTrainer) -> None:
    client = client_of(trainer)
    network = evaluation_network((1, 8, 8), SYNTHETIC)
    start = torch.rand(client.data.inputs.shape, generator=derive(0, "r"))
    found = Refiner().apply(client, derive(0, "r"))
    before, after = noisiness(network, client.data.inputs).mean(), noisiness(network, found.inputs).mean()
    assert float(after) > float(before) + 0.5
    assert cosine(trainer, client, found.inputs) > max(0.9, cosine(trainer, client, start))
    assert torch.equal(found.targets, client.data.targets)
    assert float(found.inputs.min()) >= 0.0 and float(found.inputs.max()) <= 1.0


def test_key_weights_are_the_first_order_importance() -> None:
    weights = {"a": torch.tensor([2.0, -1.0]), "b": torch.tensor([3.0])}
    gradients = {"a": torch.tensor([0.5, 4.0]), "b": torch.tensor([-2.0])}
    found = key_weights(weights, gradients, 0.5)
    assert found["a"].tolist() == [1.0, 4.0] and found["b"].tolist() == [3.0]


def test_refiner_reads_public_images_and_refuses_others(trainer: ClientTrainer, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file({"images": smooth(60, 3).contiguous()}, good)
    save_file({"images": torch.zeros(3, 3, 4, 4)}, bad)
    client = client_of(trainer)
    own = Refiner(public=str(good), steps=3).apply(client, derive(0, "r")).inputs
    assert not torch.equal(own, Refiner(steps=3).apply(client, derive(0, "r")).inputs)
    with pytest.raises(DataError, match="no file"):
        Refiner(public=str(tmp_path / "none")).apply(client, derive(0, "r"))
    with pytest.raises(DataError, match="the model takes"):
        Refiner(public=str(bad)).apply(client, derive(0, "r"))
