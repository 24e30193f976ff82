"""The certificate: what it costs where attention alone is shared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.span.outcome.certificate import certify

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


def test_the_certificate_of_attention_alone_costs_two_updates(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining()), _batch(subject, 8)
    update = _attention_of(dict(trainer.update(batch, derive(0))))
    seen: list[int] = []
    plain = ClientTrainer.update
    monkeypatch.setattr(ClientTrainer, "update", lambda self, b, rng: (seen.append(b.size), plain(self, b, rng))[1])
    found = certify(
        update,
        trainer,
        list(batch.records()),
        labels=None,
        batch_size=8,
        seq_len=7,
        rng=derive(1),
        clock=Clock(),
    )
    assert found is not None and found.exact
    assert found.labels == tuple(batch.labels.tolist())
    # One gradient of each record under each label, and the whole batch once.
    assert sum(seen) == 8 * subject.classes + 8
