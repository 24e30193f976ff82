"""Dropout as a defense draws masks as it says, and the attack that searches them finds what a plain one does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradleak.attacks.dia import DIA
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.errors import ModelError, SpecError
from gradleak.core.rng import derive
from gradleak.defenses.dropout import Dropout, MaskedDropout
from gradleak.harness.utility.tasks import make_task
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models.running.noise_inputs import noisy_layers

pytestmark = pytest.mark.contract


def digits(seed: int) -> tuple[ClientTrainer, Batch]:
    task = make_task("digits", seed)
    batch = Batch(inputs=task.train.inputs[:1], mask=task.train.mask[:1], labels=task.train.labels[:1])
    return ClientTrainer(subject=task.subject, training=LocalTraining()), batch


def test_a_mask_keeps_the_share_that_it_says_and_changes_nothing_on_average() -> None:
    """100,000 entries; five standard errors, false alarm below 1e-6."""
    layer = MaskedDropout(0.25)
    x = torch.rand(10, 10_000, generator=derive(0, "x"))
    assert torch.equal(layer(x), x), "without a mask, as if there were no dropout"
    mask = layer.draw(layer.noise_shape(x), derive(0, "mask"))
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert float(mask.mean()) == pytest.approx(0.75, abs=5 * math.sqrt(0.25 * 0.75 / 1e5))
    torch.testing.assert_close(layer.relaxed(torch.zeros(3)), torch.full((3,), 0.75))
    found = torch.func.functional_call(layer, {"noise": mask}, (x,))
    torch.testing.assert_close(found, x * mask / 0.75)


def test_every_dropout_layer_of_a_copy_is_turned_on() -> None:
    trainer, batch = digits(0)
    before = sum(isinstance(layer, nn.Dropout) for layer in trainer.subject.module.modules())
    deployed = trainer.deploy((Dropout(rate=0.25),))
    assert before == len(noisy_layers(deployed.subject.module)) > 0 == len(noisy_layers(trainer.subject.module))
    assert deployed.names() == trainer.names(), "dropout has no weights"
    plain = trainer.subject.logits(pixels=batch.inputs)
    assert torch.equal(deployed.subject.logits(pixels=batch.inputs), plain)


def test_masks_are_new_in_every_round_and_known_masks_explain_the_update() -> None:
    trainer, batch = digits(0)
    channel = Channel(trainer=trainer, stages=(Dropout(rate=0.25),))
    rng = derive(0, "channel")
    first, second = channel.observe(batch, rng), channel.observe(batch, rng)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    deployed = channel.deployed()
    data = deployed.with_noise(deployed.prepare(batch), derive(0, "channel"))
    again = deployed.replay(data.inputs, data.targets, data.mask, differentiable=False, noise=data.noise)
    assert all(torch.equal(again[name], first[name]) for name in first)
    mean = deployed.replay(data.inputs, data.targets, data.mask, differentiable=False)
    plain = trainer.update(batch, derive(0, "x"))
    assert all(torch.equal(mean[name], plain[name]) for name in plain)


def test_what_cannot_be_is_refused() -> None:
    for rate in (0.0, 1.0):
        with pytest.raises(SpecError, match="out of range"):
            Dropout(rate=rate)
    with pytest.raises(SpecError, match="penalty"):
        DIA(penalty=-1.0)
    trainer, _ = digits(0)
    bare = trainer.deploy((Dropout(),))
    with pytest.raises(ModelError, match="no dropout layer"):
        bare.deploy((Dropout(),))
