"""CENSOR: an orthogonal release, the best of its trials, exact at the truth and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.core.update import Update
from gradleak.defenses.censor import Censor, _orthogonal
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def subject() -> Subject:
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return load_subject("random:vit", settings=settings)


@pytest.fixture(scope="module")
def batch(subject: Subject) -> Batch:
    pixels = torch.rand(3, *subject.pixel_shape, generator=derive(0, "pixels"))
    return Batch(inputs=pixels, mask=torch.ones(3, dtype=torch.bool), labels=torch.tensor([0, 1, 1]))


@pytest.fixture(scope="module")
def trainer(subject: Subject) -> ClientTrainer:
    return ClientTrainer(subject=subject, training=LocalTraining())


def client_of(trainer: ClientTrainer, batch: Batch, round: int = 0) -> Client:
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer, round=round)


def scaled(update: Update, norm: float) -> Update:
    return update.map(lambda _, tensor: tensor * (norm / max(float(tensor.norm()), 1e-30)))


# CENSOR: orthogonal for every norm


@pytest.mark.parametrize("norm", [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3])
def test_censor_is_orthogonal_whatever_the_norm(trainer: ClientTrainer, batch: Batch, norm: float) -> None:
    plain = scaled(trainer.update(batch, derive(0, "x")), norm)
    released, _ = Censor(trials=1).apply(plain, client_of(trainer, batch), derive(1, "censor"))
    for name, tensor in plain.items():
        u, d = tensor.double().flatten(), released[name].double().flatten()
        assert abs(float(u @ d)) < 1e-6 * float(u.norm()) ** 2, name
        assert float(d.norm()) == pytest.approx(float(u.norm()), rel=1e-6)


@pytest.mark.parametrize("padded", [False, True], ids=["vectorized", "one by one"])
def test_censor_shares_the_best_of_its_trials(trainer: ClientTrainer, batch: Batch, padded: bool) -> None:
    """Of the twenty draws of one stream, the one with the lowest loss after the step, each computed by itself."""
    plain, client, stage = trainer.update(batch, derive(0, "x")), client_of(trainer, batch), Censor(lr=0.5)
    if padded:
        client = replace(client, data=replace(client.data, mask=torch.zeros_like(client.data.mask)))
    released, _ = stage.apply(plain, client, derive(1, "censor"))
    stream = derive(1, "censor")
    drawn = {name: _orthogonal(tensor, stage.trials, stream) for name, tensor in plain.items()}
    weights = {name: weight.detach() for name, weight in trainer.subject.trainable().items()}
    losses = [
        float(trainer.loss(client.data, {n: weights[n] - stage.lr * drawn[n][i] for n in weights}))
        for i in range(stage.trials)
    ]
    best = losses.index(min(losses))
    assert all(torch.equal(released[name], drawn[name][best]) for name in plain)
    assert max(losses) - min(losses) > 1e-3


def test_censor_surrogate_is_exact_at_the_truth_and_only_there(trainer: ClientTrainer, batch: Batch) -> None:
    plain = trainer.update(batch, derive(0, "x"))
    released, _ = Censor(trials=1).apply(plain, client_of(trainer, batch), derive(1, "censor"))
    both = {
        name: torch.stack([tensor, torch.roll(tensor.flatten(), 1).view_as(tensor)]) for name, tensor in plain.items()
    }
    found = Censor().surrogate(both, released)
    errors = sum((found[name] - released[name]).square().flatten(1).sum(1) for name in plain)
    assert float(errors[0]) < 1e-10 * released.norm() ** 2  # type: ignore[index]
    assert float(errors[1]) > 1e-4 * released.norm() ** 2  # type: ignore[index]
