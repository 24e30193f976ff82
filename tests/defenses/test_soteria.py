"""Soteria prunes the columns that it says, by scores that finite differences confirm."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses.soteria import Soteria, unit_scores
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


def test_soteria_prunes_the_columns_that_it_says(trainer: ClientTrainer, batch: Batch) -> None:
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    released, _ = Soteria(fraction=0.4).apply(plain, client, derive(0, "y"))
    head = trainer.subject.anatomy.head
    assert head is not None
    gone = (released[head.weight] == 0).all(0)
    assert int(gone.sum()) == int(0.4 * head.in_features)
    scores = unit_scores(trainer.subject, client.data)
    assert float(scores[gone].max()) <= float(scores[~gone].min())
    assert all(torch.equal(released[name], plain[name]) for name in plain if name != head.weight)


def test_soteria_scores_agree_with_finite_differences(subject: Subject, batch: Batch) -> None:
    """Two units of one record: ‖∂r/∂x‖ from central differences along every pixel."""
    head = subject.anatomy.head
    assert head is not None
    one = Batch(inputs=batch.inputs[:1].double(), mask=batch.mask[:1], labels=batch.labels[:1])
    module = subject.module.double()
    try:
        seen: list[torch.Tensor] = []
        handle = module.get_submodule(head.module).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
        with torch.no_grad():
            subject.logits(pixels=one.inputs)
            eye = torch.eye(one.inputs[0].numel(), dtype=torch.float64).view(-1, *one.inputs.shape[1:]) * 1e-3
            for shift in eye:
                subject.logits(pixels=one.inputs + shift)
                subject.logits(pixels=one.inputs - shift)
        handle.remove()
        slopes = torch.stack([(up - down) / 2e-3 for up, down in zip(seen[1::2], seen[2::2], strict=True)])
        data = ClientTrainer(subject=subject, training=LocalTraining()).prepare(one)
        torch.testing.assert_close(unit_scores(subject, data), slopes.norm(dim=0) / seen[0].abs(), rtol=1e-4, atol=1e-5)
    finally:
        module.float()
