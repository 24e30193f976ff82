"""PRECODE and CVB: deterministic without a draw, replayed with it, and what an attacker may ignore."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch, TrainingData
from gradleak.core.rng import derive
from gradleak.core.stage import ModelStage
from gradleak.defenses.cvb import CVB
from gradleak.defenses.precode import PRECODE
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.models.running.noise_inputs import noisy_layers

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SMALL, "vocab_size": 260, "max_position_embeddings": 12}
IMAGE = {**SMALL, "image_size": 8, "patch_size": 4}


def vision() -> Subject:
    return load_subject("random:vit", settings=IMAGE)


def trainer_of(subject: Subject, *stages: ModelStage, **training: object) -> ClientTrainer:
    trainer = ClientTrainer(subject=subject, training=LocalTraining(**training))  # pyright: ignore[reportArgumentType]
    return trainer.deploy(stages)


def data_of(trainer: ClientTrainer, *, padded: bool = True) -> TrainingData:
    if trainer.subject.modality == "image":
        pixels = torch.rand(3, *trainer.subject.pixel_shape, generator=derive(0, "pixels"))
        batch = Batch(inputs=pixels, mask=torch.ones(3, dtype=torch.bool), labels=torch.tensor([0, 1, 1]))
        return trainer.prepare(batch)
    ids = torch.randint(5, 250, (3, 6), generator=derive(0, "ids"))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 4:] = not padded
    labels = torch.tensor([0, 1, 1]) if trainer.subject.loss.name == "classification" else ids.masked_fill(~mask, -100)
    return trainer.prepare(Batch(inputs=ids, mask=mask, labels=labels))


@pytest.mark.parametrize("loss", ["classification", "causal-lm"])
def test_without_a_draw_it_is_one_deterministic_model(loss: str) -> None:
    subject = load_subject("random:gpt2", loss=loss, settings={**SMALL, "vocab_size": 260, "n_positions": 12})
    trainer = trainer_of(subject, PRECODE(code=8))
    data = data_of(trainer)
    first, second = (trainer.replay(data.inputs, data.targets, data.mask, differentiable=False) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_replay_with_the_client_s_draw_is_the_client_s_update(kind: str) -> None:
    text = load_subject("random:bert", settings=TEXT)
    trainer = trainer_of(text, PRECODE(code=8)) if kind == "text" else trainer_of(vision(), CVB())
    data = data_of(trainer)
    released = trainer.train(data, derive(0, "client"))
    drawn = trainer.with_noise(data, derive(0, "client")).noise
    again = trainer.replay(data.inputs, data.targets, data.mask, noise=drawn, differentiable=False)
    without = trainer.replay(data.inputs, data.targets, data.mask, differentiable=False)
    assert all(torch.equal(released[name], again[name]) for name in released)
    assert any(not torch.allclose(released[name], without[name]) for name in released)


def test_every_step_draws_anew() -> None:
    trainer = trainer_of(load_subject("random:bert", settings=TEXT), PRECODE(code=8), share="delta", steps=2, lr=0.1)
    data = data_of(trainer)
    generator = derive(0, "client")
    released = trainer.train(data, generator)
    one = trainer_of(load_subject("random:bert", settings=TEXT), PRECODE(code=8), share="delta", steps=1, lr=0.1)
    again = derive(0, "client")
    first = one.train(data, again)
    weights = {name: one.subject.parameters()[name].detach() + first[name] for name in first}
    second = one.with_noise(data, again)
    slopes = torch.autograd.grad(
        one.loss(second, {n: w.requires_grad_() for n, w in weights.items()}), list(weights.values()), allow_unused=True
    )
    for (name, weight), slope in zip(weights.items(), slopes, strict=True):
        start = one.subject.parameters()[name].detach()
        expected = weight.detach() - start - 0.1 * (0.0 if slope is None else slope)
        torch.testing.assert_close(released[name], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_examples_keep_their_own_draw(differentiable: bool, padded: bool) -> None:
    """The mean of the examples' gradients is the batch's gradient, penalty included."""
    trainer = trainer_of(load_subject("random:bert", settings=TEXT), PRECODE(code=8))
    data = trainer.with_noise(data_of(trainer, padded=padded), derive(0, "client"))
    weights = {name: value.detach() for name, value in trainer.subject.trainable().items()}
    each = trainer.example_gradients(weights, data, differentiable=differentiable)
    joint = trainer.replay(data.inputs, data.targets, data.mask, noise=data.noise, differentiable=False)
    for name, expected in joint.items():
        torch.testing.assert_close(each[name].mean(0), expected, atol=1e-6, rtol=1e-4)


def test_what_an_attacker_ignores_is_the_bottleneck_and_what_lies_behind_it() -> None:
    trainer = trainer_of(load_subject("random:bert", settings=TEXT), PRECODE(code=8))
    kinds = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    assert PRECODE(code=8).ignored(trainer) == {f"classifier.precode.{kind}" for kind in kinds} | {
        "classifier.weight",
        "classifier.bias",
    }
    images = trainer_of(vision(), CVB())
    (home,) = noisy_layers(images.subject.module)
    kept = set(images.names()) - CVB().ignored(images)
    assert f"{home}.encoder.weight" in kept and f"{home}.decoder.weight" not in kept
    assert not any(".1." in name or "classifier" in name for name in kept)
    assert any("patch" in name for name in kept)
