"""Labels of known records, read from tensors other than the head's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.span.outcome.label_fit import fitted_labels

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.fixture(scope="module", params=[2, 5])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    yield load_subject("random:gpt2", classes=request.param, settings=SIZES)


def _batch(subject: Subject, records: int) -> Batch:
    rng = derive(records, "label-fit")
    ids = torch.randint(3, subject.anatomy.vocab_size, (records, 7), generator=rng)
    labels = torch.randint(subject.classes, (records,), generator=rng)
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)


def _attention_of(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in update.items() if ".attn." in name}


@pytest.mark.parametrize("training", [LocalTraining(), LocalTraining(share="delta", lr=0.1)])
def test_attention_alone_tells_the_labels(subject: Subject, training: LocalTraining) -> None:
    trainer, batch = ClientTrainer(subject=subject, training=training), _batch(subject, 12)
    update = _attention_of(dict(trainer.update(batch, derive(0))))
    found = fitted_labels(update, trainer, batch.inputs, batch.mask, known=None, rng=derive(1), clock=Clock())
    assert found == tuple(batch.labels.tolist())


def test_known_labels_are_given_to_their_records(subject: Subject) -> None:
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining()), _batch(subject, 6)
    update = _attention_of(dict(trainer.update(batch, derive(0))))
    known = sorted(batch.labels.tolist())
    found = fitted_labels(update, trainer, batch.inputs, batch.mask, known=known, rng=derive(1), clock=Clock())
    assert found == tuple(batch.labels.tolist())


def test_spent_time_and_too_many_unknowns_are_no_labels(subject: Subject) -> None:
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining()), _batch(subject, 300)
    settings = {"known": None, "rng": derive(1), "clock": Clock(0.0)}
    few, update = (batch.inputs[:2], batch.mask[:2]), dict(subject.parameters())
    assert fitted_labels(update, trainer, *few, **settings) is None
    assert fitted_labels(update, trainer, batch.inputs, batch.mask, **settings) is None
