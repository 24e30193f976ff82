"""The attack that searches dropout masks finds what a plain one does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gradleak.attacks.dia import DIA
from gradleak.attacks.dlg import DLG
from gradleak.core.attack import Reconstruction
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.stage import Stage
from gradleak.defenses.dropout import Dropout
from gradleak.harness.utility.tasks import make_task
from gradleak.matching.problem import pose
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models.running.noise_inputs import noisy_layers

pytestmark = pytest.mark.contract


def digits(seed: int) -> tuple[ClientTrainer, Batch]:
    task = make_task("digits", seed)
    batch = Batch(inputs=task.train.inputs[:1], mask=task.train.mask[:1], labels=task.train.labels[:1])
    return ClientTrainer(subject=task.subject, training=LocalTraining()), batch


def attacked(attack: DLG | DIA, stages: tuple[Stage, ...], *, told: bool = True) -> Reconstruction:
    trainer, batch = digits(1)
    channel = Channel(trainer=ClientTrainer(subject=trainer.subject, training=LocalTraining()), stages=stages)
    deployed = channel.deployed()
    facts: dict[str, Any] = {"subject": deployed.subject, "trainer": deployed, "batch_size": 1}
    facts |= {"labels": batch.labels.tolist()} | ({"stages": channel.stages} if told else {})
    seen = Observation(update=channel.observe(batch, derive(1, "c")), knowledge=Knowledge(facts=facts))
    return attack(seen, rng=derive(1, "a"))


def psnr(found: Reconstruction) -> float:
    return -10 * math.log10(float((found.records[0] - digits(1)[1].inputs[0]).square().mean()))


def test_searching_the_masks_recovers_what_ignoring_them_does_not() -> None:
    """One digit, rate 0.1. The benchmark prints five, at two rates."""
    stage = (Dropout(rate=0.1),)
    naive = attacked(DLG(iterations=200, restarts=1), stage, told=False)
    informed = attacked(DIA(iterations=200, restarts=1), stage)
    assert psnr(naive) < 12.0 and psnr(informed) > 25.0


def test_the_average_of_the_masks_is_held_to_its_mean() -> None:
    """The penalty is 0 at the mean and 1 − (1 − rate) where every mask is one."""
    trainer, batch = digits(1)
    channel = Channel(trainer=trainer, stages=(Dropout(rate=0.25),))
    deployed = channel.deployed()
    facts: dict[str, Any] = {
        "subject": deployed.subject,
        "trainer": deployed,
        "batch_size": 1,
        "stages": channel.stages,
    }
    view = Knowledge(facts=facts).view(DIA.needs | DIA.uses)
    problem = pose(channel.observe(batch, derive(1, "c")), view, DIA().parts())
    assert len(problem.noise) == len(noisy_layers(deployed.subject.module))
    zero = {f"noise of {name}": torch.zeros(2, *shape) for name, shape in problem.noise.items()}
    assert float(problem.surprise(problem.drawn(zero)).max()) < 1e-6
    high = {name: latent + 50.0 for name, latent in zero.items()}
    torch.testing.assert_close(problem.surprise(problem.drawn(high)), torch.full((2,), 0.25))
