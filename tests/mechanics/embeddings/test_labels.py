"""What the gradient of a head says of the labels, on gradients of real models."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.embeddings.labels import classes_present, labels_of_records, single_label
from gradleak.models import Subject
from tests.support.tiny import text_batch, text_model

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def bert() -> Subject:
    return text_model("bert", classes=4)


def released(subject: Subject, batch: Batch, share: str = "gradient") -> dict[str, torch.Tensor]:
    training = LocalTraining(share=share, lr=0.01)  # type: ignore[arg-type]
    return dict(ClientTrainer(subject=subject, training=training).update(batch, derive(0)))


@pytest.mark.parametrize("label", range(4))
def test_the_one_negative_entry_is_the_label(bert: Subject, label: int) -> None:
    plain = text_batch(bert, (5,), seed=label)
    batch = Batch(inputs=plain.inputs, mask=plain.mask, labels=torch.tensor([label]))
    update = released(bert, batch)
    assert single_label(update, bert.anatomy, batch_size=1) == label
    assert classes_present(update, bert.anatomy) == {label}
    assert single_label(update, bert.anatomy, batch_size=2) is None, "two records may share a sign"


def test_classes_that_are_present_do_occur(bert: Subject) -> None:
    for seed in range(8):
        batch = text_batch(bert, (4, 5, 3), seed=seed)
        present = classes_present(released(bert, batch), bert.anatomy)
        assert present is not None and present <= set(batch.labels.tolist())


@pytest.mark.parametrize("share", ["gradient", "delta"])
def test_every_record_gets_its_own_label(bert: Subject, share: str) -> None:
    for seed in range(3):
        batch = text_batch(bert, (4, 6, 3, 5), seed=seed)
        found = labels_of_records(
            released(bert, batch, share), bert, batch.inputs, batch.mask, descent=share == "delta"
        )
        assert found == tuple(batch.labels.tolist())


def test_records_that_the_head_cannot_tell_apart_have_no_labels(bert: Subject) -> None:
    one = text_batch(bert, (5,))
    twice = Batch(inputs=one.inputs.repeat(2, 1), mask=one.mask.repeat(2, 1), labels=torch.tensor([0, 1]))
    assert labels_of_records(released(bert, twice), bert, twice.inputs, twice.mask, descent=False) is None


def test_without_the_head_nothing_is_said(bert: Subject) -> None:
    batch, head = text_batch(bert), bert.anatomy.head
    assert head is not None
    update = {name: t for name, t in released(bert, batch).items() if name not in (head.weight, head.bias)}
    assert classes_present(update, bert.anatomy) is None
    assert labels_of_records(update, bert, batch.inputs, batch.mask, descent=False) is None


def test_a_head_without_bias_says_nothing_by_signs() -> None:
    gpt2 = text_model("gpt2")
    update = released(gpt2, text_batch(gpt2, (5,)))
    assert classes_present(update, gpt2.anatomy) is None and single_label(update, gpt2.anatomy, batch_size=1) is None
