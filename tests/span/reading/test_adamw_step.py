"""One step of AdamW undone: against the gradient itself, with the error that is claimed, and read by the span attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gradleak.attacks.span import Span
from gradleak.core.attack import Status
from gradleak.core.batch import Batch
from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.optimizers import ADAM_EPSILON
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.subspace.subspace import column_space
from gradleak.models import load_subject
from gradleak.span.reading.adamw_step import first_step, undo_first_step

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 4000}


def test_the_error_is_of_the_size_that_is_claimed() -> None:
    """torch's own AdamW on weights and gradients of many sizes; below saturation the standardized error has rms one."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(400, 300, generator=rng) * 0.05)
    before = weight.detach().clone()
    gradient = torch.randn(400, 300, generator=rng) * 10.0 ** torch.empty(400, 300).uniform_(-8, -3.5, generator=rng)
    weight.grad = gradient
    torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.01, eps=ADAM_EPSILON).step()
    found, error = undo_first_step(
        weight.detach() - before, before * -(1e-3 * 0.01), before, lr=1e-3, epsilon=ADAM_EPSILON
    )
    standardized = (found - gradient) / error
    assert 0.8 < float(standardized.square().mean().sqrt()) < 1.2
    relative = (error / found.abs())[gradient.abs() > 1e-7]
    assert float(relative.median()) < 0.01


@pytest.mark.parametrize("seed", (3, 4))
def test_what_stands_out_of_an_undone_step_of_minilm_are_the_tokens(seed: int) -> None:
    """Errors differ by feature and output; with both divided out the rank is the number of tokens."""
    subject = load_subject("minilm", classes=2, seed=seed)
    ids = torch.randint(subject.anatomy.vocab_size, (4, 16), generator=derive(seed, "ids"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.arange(4) % 2)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(share="delta", optimizer="adamw", lr=1e-3))
    undone = first_step(trainer.update(batch, derive(seed)), trainer)
    maps = subject.anatomy.first_maps()
    space = column_space(
        [each.as_matrix(undone.gradients[each.weight]).T for each in maps],
        noise_std=[undone.noise[each.weight] for each in maps],
        summands=64,
    )
    assert space.rank == 64


def test_weights_of_several_steps_are_refused() -> None:
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SMALL)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(share="delta", optimizer="adamw", steps=2))
    with pytest.raises(NotApplicableError, match="first step"):
        first_step(trainer.update(_batch(2, 6), derive(0)), trainer)


def _batch(records: int, length: int) -> Batch:
    ids = torch.randint(SMALL["vocab_size"], (records, length), generator=derive(0, "ids"))
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)


def test_records_are_read_from_an_adamw_delta_and_not_without_undoing_it() -> None:
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SMALL)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(share="delta", optimizer="adamw", lr=1e-3))
    batch = _batch(4, 8)
    update = trainer.update(batch, derive(0))
    facts = {"subject": subject, "batch_size": 4, "seq_len": 8}
    told = Observation(update=update, knowledge=Knowledge(facts={**facts, "trainer": trainer}))
    found = Span()(told, rng=derive(0, "attack"))
    truth = {tuple(row[:-1].tolist()) for row in batch.inputs}
    assert {tuple(record.tolist()) for record in found.records} == truth
    plain = replace(trainer, training=LocalTraining(share="delta", lr=1e-3))
    taken_for_sgd = Observation(update=update, knowledge=Knowledge(facts={**facts, "trainer": plain}))
    wrong = Span()(taken_for_sgd, rng=derive(0, "attack"))
    assert wrong.status is Status.NOT_APPLICABLE or not truth & {tuple(r.tolist()) for r in wrong.records}
