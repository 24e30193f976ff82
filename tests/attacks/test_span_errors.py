"""What the span attacks are given wrongly ends in NOT_APPLICABLE with the reason, or in their best within the budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradleak.attacks.dager import DAGER
from gradleak.attacks.span import Span
from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.errors

SIZES = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 400}


def subject_of(kind: str, **settings: int) -> Subject:
    return load_subject(f"random:{kind}", settings=SIZES | settings)


def batch_of(rows: int = 2, length: int = 6) -> Batch:
    ids = torch.randint(6, 400, (rows, length), generator=derive(0, "batch"))
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.arange(rows) % 2)


def attack(
    subject: Subject, update: Update, batch: Batch, *, by: Attack | None = None, seconds: float | None = None
) -> Reconstruction:
    facts = {"subject": subject, "batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    return (by or Span())(observation, rng=derive(0, "attack"), clock=Clock(seconds))


def gradient(subject: Subject, batch: Batch) -> Update:
    return ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_an_update_without_the_first_attention(kind: str) -> None:
    subject, batch = subject_of(kind), batch_of()
    first = {each.weight for each in subject.anatomy.blocks[0].attention_inputs}
    made = {name: tensor for name, tensor in gradient(subject, batch).items() if name not in first}
    found = attack(subject, Update(made), batch)
    assert found.status is Status.NOT_APPLICABLE and not found.records
    assert all(name in found.message for name in first)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_an_update_of_a_model_of_another_width(kind: str) -> None:
    batch = batch_of()
    found = attack(subject_of(kind), gradient(subject_of(kind, hidden_size=64), batch), batch)
    assert found.status is Status.NOT_APPLICABLE
    assert "another model" in found.message and "96" in found.message and "64" in found.message


class Squashing(nn.Module):
    """A normalization of no known law: an elementwise tanh with a gain and an offset."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(20.0 * x) * self.weight + self.bias


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_unknown_normalization_is_run_instead_of_read(kind: str) -> None:
    subject, batch = subject_of(kind), batch_of()
    for path in (path for block in subject.anatomy.blocks for path in block.norms):
        subject.module.set_submodule(path, Squashing(96))
    again = load_subject(subject.module)
    found = attack(again, gradient(again, batch), batch)
    assert {tuple(record.tolist()) for record in found.records} == {tuple(r.tolist()) for r in batch.records()}


def test_combinations_beyond_any_integer_are_counted_and_left_out() -> None:
    subject = subject_of("bert", hidden_size=256)
    batch = batch_of(8, 25)
    found = attack(subject, gradient(subject, batch), batch, by=DAGER(combinations=10, tau1=1e-3))
    assert found.status is Status.NOTHING_FOUND
    assert found.statistics["candidates_max"] ** 25 > 2**64
    assert "25 lengths have more than 10 combinations" in found.message


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_a_spent_budget_gives_the_best_so_far(kind: str) -> None:
    subject, batch = subject_of(kind, hidden_size=256), batch_of(8, 16)
    update = gradient(subject, batch)
    found = attack(subject, update, batch, seconds=0.0)
    assert found.status is Status.BUDGET_SPENT


class Ticking(Clock):
    """A clock that is spent at its n-th question."""

    def __init__(self, questions: int) -> None:
        super().__init__(None)
        self.left = questions

    def spent(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [4, 8, 12])
def test_what_a_decoder_returns_at_the_end_of_the_budget_are_true_beginnings(after: int) -> None:
    subject, batch = subject_of("llama", hidden_size=256), batch_of(6, 16)
    facts = {"subject": subject, "batch_size": batch.size, "seq_len": 16}
    observation = Observation(update=gradient(subject, batch), knowledge=Knowledge(facts=facts))
    found = Span()(observation, rng=derive(0, "attack"), clock=Ticking(after))
    assert found.status is Status.BUDGET_SPENT
    beginnings = {tuple(record[:after].tolist()) for record in batch.records()}
    assert {tuple(record.tolist()) for record in found.records} == beginnings
