"""Least squares over the gradients of single records finds the batch in a list that holds too much."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.span.outcome.recombination import recombinations
from tests.support.span import make_batch, make_subject

pytestmark = pytest.mark.oracle


def test_records_and_their_copies_are_found_among_recombined_ones() -> None:
    subject = make_subject("gpt2")
    batch = make_batch(subject, [8, 8, 8, 5], seed=2)
    ids = batch.inputs.clone()
    ids[1], ids[3, :5] = ids[0], ids[2, :5]
    batch = Batch(inputs=ids, mask=batch.mask, labels=torch.tensor([1, 1, 0, 1]))
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(batch, derive(0, "t"))
    wrong = [torch.cat((ids[0, :4], ids[2, 4:])), torch.cat((ids[2, :4], ids[0, 4:]))]
    pool = [*wrong, ids[0], ids[2]]
    proposals = list(recombinations(update, trainer, pool, batch_size=4, rng=derive(0, "r"), clock=Clock()))
    assert len(proposals) == 2  # The second one knows beginnings, too.
    labeled = sorted(zip((tuple(r.tolist()) for r in proposals[1].records), proposals[1].labels, strict=True))
    truth = sorted(zip((tuple(r.tolist()) for r in batch.records()), batch.labels.tolist(), strict=True))
    assert labeled == truth
