"""Layers that draw at random: what they compute, what the client's loss gains from them, and that a replay with the same
draw gives the same update."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.errors import ModelError, SpecError
from gradleak.core.rng import derive
from gradleak.defenses.cvb import CVB
from gradleak.defenses.frozen_embeddings import FrozenEmbeddings
from gradleak.defenses.ppp import PPP
from gradleak.defenses.precode import PRECODE
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.models.running.noise_inputs import noise_name

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SMALL, "vocab_size": 260, "max_position_embeddings": 12}
IMAGE = {**SMALL, "image_size": 8, "patch_size": 4}


def vision() -> Subject:
    return load_subject("random:vit", settings=IMAGE)


def test_wrong_use_is_refused() -> None:
    text = load_subject("random:bert", settings=TEXT)
    with pytest.raises(ModelError, match="precode"):
        CVB().change(text)
    with pytest.raises(ModelError, match="no block 5"):
        CVB(block=5).change(vision())
    with pytest.raises(SpecError, match="kernel"):
        CVB(kernel=2)
    with pytest.raises(SpecError, match="code"):
        PRECODE(code=0)
    with pytest.raises(SpecError, match="relative_std"):
        PPP(relative_std=0.0)
    trainer = ClientTrainer(subject=text, training=LocalTraining())
    with pytest.raises(SpecError, match="none stands before it"):
        _ = Channel(trainer=trainer, stages=(PPP(relative_std=1.0),))
    with pytest.raises(ModelError, match="no random layer"):
        _ = Channel(trainer=trainer, stages=(FrozenEmbeddings(), PPP(relative_std=1.0))).observe(
            Batch(inputs=torch.full((1, 4), 7), mask=torch.ones(1, 4, dtype=torch.bool), labels=torch.tensor([0])),
            derive(0, "client"),
        )


def test_the_name_of_a_draw() -> None:
    assert noise_name("classifier.precode") == "classifier.precode.noise"
