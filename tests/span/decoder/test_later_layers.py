"""Prefixes recombined from records of the batch fail at the second block, and those of the batch pass."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.span.candidates.types import Candidates
from gradleak.span.decoder.continuations import Grid
from gradleak.span.decoder.later_layers import LaterLayers
from gradleak.span.reading.observed_layer import context_layers, later_layers
from tests.support.span import VOCAB, make_batch, make_subject

pytestmark = pytest.mark.contract


def test_a_token_of_another_record_fails_at_the_second_block() -> None:
    subject = make_subject("llama", loss="causal-lm")
    batch = make_batch(subject, [10, 10, 10], seed=3)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "t"))
    model = Model(subject=subject)
    behind = context_layers(update, model, noise_std=lambda _: 0.0, summands=30)[-1]
    layers = later_layers(update, model, behind, length=8, noise_std=lambda _: 0.0, summands=30)
    assert [layer.path.split(".")[2] for layer in layers] == ["1", "1"]
    rows = batch.inputs[:, :9]
    candidates = Candidates(
        tokens=tuple(rows.T),
        residuals=tuple(torch.zeros(9, 3)),
        nearest=rows[0],
        null_cut=0.1,
        positional=True,
    )
    grid = Grid.of(candidates, VOCAB, derive(0, "g"))
    later = LaterLayers(layers=layers, model=model, grid=grid, rng=derive(0, "l"))
    assert bool(later.passed_whole(rows).all())
    wrong = rows.clone()
    wrong[:, 4] = rows[:, 4].roll(1)
    assert not bool(later.passed_whole(wrong).any())
    numbers = torch.stack([grid.numbers(row) for row in wrong])
    assert not bool(later.passed(numbers).any())
    assert bool(later.passed(numbers[:, :4]).all())


def test_a_classifiers_last_block_is_not_asked() -> None:
    """Its four heads show at most nine directions of a record, and the other positions would look like strangers."""
    subject = make_subject("llama")
    batch = make_batch(subject, [8, 8], seed=1)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "t"))
    model = Model(subject=subject)
    behind = context_layers(update, model, noise_std=lambda _: 0.0, summands=16)[-1]
    assert later_layers(update, model, behind, length=8, noise_std=lambda _: 0.0, summands=16) == ()


def test_queries_alone_are_not_asked() -> None:
    subject = make_subject("llama", loss="causal-lm")
    batch = make_batch(subject, [8, 8], seed=1)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "t"))
    model = Model(subject=subject)
    behind = context_layers(update, model, noise_std=lambda _: 0.0, summands=16)[-1]
    query = subject.anatomy.blocks[1].attention_inputs[0].weight
    assert later_layers({query: update[query]}, model, behind, length=8, noise_std=lambda _: 0.0, summands=16) == ()
