"""AdaDefense: a sign quantizer in the first round, its own recursion afterwards, and clients apart."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel, Memory
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.core.update import Update
from gradleak.defenses.ada_defense import AdaDefense
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


# AdaDefense: a sign quantizer in its first round; one memory per client


def test_ada_defense_is_a_sign_quantizer_in_the_first_round(trainer: ClientTrainer, batch: Batch) -> None:
    g = torch.randn(10_000, generator=derive(0, "g")) * 0.01
    g[:100] = 0.0
    released, _ = AdaDefense().apply(Update({"a": g}), client_of(trainer, batch), derive(0, "x"))
    large = g.abs() > 1e-4
    assert float((released["a"] - 1e-3 * g.sign())[large].abs().max()) < 1e-5
    assert bool((released["a"][:100] == 0).all())


@pytest.mark.parametrize("variant", ["adam", "adagrad", "yogi"])
def test_ada_defense_follows_its_recursion(variant: str, trainer: ClientTrainer, batch: Batch) -> None:
    """Four rounds against the scalar recursion written out in Python floats."""
    stage, m, v, state = AdaDefense(variant=variant), 0.0, 0.0, {}  # type: ignore[arg-type]
    for t, g in enumerate((0.3, -0.2, 0.05, 0.0)):
        client = Client(batch=batch, data=trainer.prepare(batch), trainer=trainer, round=t, state=state)
        released, state = stage.apply(Update({"a": torch.tensor([g], dtype=torch.float64)}), client, derive(0, "x"))
        m = 0.9 * m + 0.1 * g
        if variant == "adam":
            v = 0.999 * v + 0.001 * g * g
        elif variant == "adagrad":
            v = v + g * g
        else:
            v = v - 0.001 * g * g * (1 if v > g * g else -1 if v < g * g else 0)
        lr = 1e-3 * math.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        assert float(released["a"]) == pytest.approx(lr * m / (math.sqrt(v) + 1e-8), rel=1e-12)


def test_ada_defense_keeps_clients_apart(trainer: ClientTrainer, batch: Batch) -> None:
    """The conformance tests run this for every defense; here the public fault itself: a shared memory would differ."""
    channel = Channel(trainer=trainer, stages=(AdaDefense(),))
    other = Batch(inputs=batch.inputs.flip(0), mask=batch.mask, labels=torch.tensor([1, 0, 0]))
    first, memory = channel.client(batch, Memory(), derive(0, "x"))
    assert memory.states[0], "the memory is there to be seen"
    second, _ = channel.client(batch, memory, derive(0, "x"))
    mixed = channel.client(batch, channel.client(other, memory, derive(0, "x"))[1], derive(0, "x"))[0]
    assert any(not torch.equal(second[name], mixed[name]) for name in second)
    assert all(torch.equal(first[n], channel.client(batch, Memory(), derive(0, "y"))[0][n]) for n in first)
