"""The head's gradient gives last tokens, copies and prefixes, and says so where beginnings are missing."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import IGNORED, Batch
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject
from gradleak.span.outcome.next_tokens import records_by_next_tokens
from tests.support.span import make_batch, make_subject

pytestmark = pytest.mark.oracle


def _observed(kind: str) -> tuple[Subject, Update, list[tuple[int, ...]], list[torch.Tensor]]:
    """Three records, one of them twice, one the beginning of another; and what growth finds of them."""
    subject = make_subject(kind, loss="causal-lm")
    batch = make_batch(subject, [9, 9, 6, 8], seed=0)
    ids = batch.inputs.clone()
    ids[1], ids[2, :6] = ids[0], ids[3, :6]
    batch = Batch(inputs=ids, mask=batch.mask, labels=ids.masked_fill(~batch.mask, IGNORED))
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "t"))
    truth = sorted(tuple(record.tolist()) for record in batch.records())
    return subject, update, truth, [ids[0, :8], ids[3, :7]]


@pytest.mark.parametrize("factor", [1.0, -0.01])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_copies_prefixes_and_last_tokens_are_counted_whatever_the_factor(kind: str, factor: float) -> None:
    subject, update, truth, prefixes = _observed(kind)
    scaled = update.map(lambda _, tensor: factor * tensor)
    stranger = torch.tensor([7, 8, 9])
    records = records_by_next_tokens(scaled, subject, [*prefixes, stranger], batch_size=4)
    assert records is not None
    assert sorted(tuple(record.tolist()) for record in records) == truth


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_missing_beginning_gives_no_other_records(kind: str) -> None:
    subject, update, truth, prefixes = _observed(kind)
    records = records_by_next_tokens(update, subject, prefixes[:1], batch_size=4)
    assert records is None or sorted(tuple(record.tolist()) for record in records) != truth


def test_without_the_heads_gradient_nothing_is_said() -> None:
    subject, update, _, prefixes = _observed("llama")
    head = subject.anatomy.head
    assert head is not None
    left = Update({name: tensor for name, tensor in update.items() if name != head.weight})
    assert records_by_next_tokens(left, subject, prefixes, batch_size=4) is None
