"""DGC releases everything in the end, and warms up."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.core.update import Update
from gradleak.defenses.dgc import DGC
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


# DGC: the residual delays, it does not remove


def test_dgc_releases_all_in_the_end(trainer: ClientTrainer, batch: Batch) -> None:
    stage, state, sent, given = DGC(fraction=0.9, momentum=0.0), {}, torch.zeros(50), torch.zeros(50)
    rng = derive(0, "updates")
    for t in range(7):
        client = Client(batch=batch, data=trainer.prepare(batch), trainer=trainer, round=t, state=state)
        u = torch.randn(50, generator=rng)
        released, state = stage.apply(Update({"a": u}), client, rng)
        assert int((released["a"] != 0).sum()) == 5
        sent, given = sent + released["a"], given + u
    torch.testing.assert_close(sent + state["residual.a"], given)


def test_dgc_warms_up() -> None:
    stage = DGC(fraction=0.999, warmup=4)
    assert [stage.fraction_in(t) for t in range(6)] == [0.75, 0.9375, 0.984375, 0.99609375, 0.999, 0.999]
