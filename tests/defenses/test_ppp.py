"""Partial perturbation leaves the bottleneck alone."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.rng import derive
from gradleak.core.stage import ModelStage, Stage
from gradleak.defenses.ppp import PPP
from gradleak.defenses.precode import PRECODE
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SMALL, "vocab_size": 260, "max_position_embeddings": 12}


def trainer_of(subject: Subject, *stages: ModelStage, **training: object) -> ClientTrainer:
    trainer = ClientTrainer(subject=subject, training=LocalTraining(**training))  # pyright: ignore[reportArgumentType]
    return trainer.deploy(stages)


def test_partial_perturbation_leaves_the_bottleneck_alone() -> None:
    subject = load_subject("random:bert", settings=TEXT)
    batch = Batch(
        inputs=torch.randint(5, 250, (2, 6), generator=derive(0, "ids")),
        mask=torch.ones(2, 6, dtype=torch.bool),
        labels=torch.tensor([0, 1]),
    )

    def released(*stages: Stage) -> dict[str, torch.Tensor]:
        trainer = ClientTrainer(subject=subject, training=LocalTraining())
        return dict(Channel(trainer=trainer, stages=stages).observe(batch, derive(0, "client")))

    without, partly = released(PRECODE(code=8)), released(PRECODE(code=8), PPP(relative_std=0.5))
    above = PRECODE(code=8).ignored(trainer_of(subject, PRECODE(code=8)))
    moved = {name for name in without if not torch.equal(without[name], partly[name])}
    zero = {name for name, tensor in without.items() if not tensor.any()}
    assert moved == set(without) - above - zero
    name = max(moved, key=lambda each: without[each].numel())
    ratio = (partly[name] - without[name]).std() / without[name].square().mean().sqrt()
    assert ratio == pytest.approx(0.5, rel=0.1)
