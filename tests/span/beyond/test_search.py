"""Whole sentences of a batch that holds more tokens than the width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.loss import CLASSIFICATION
from gradleak.core.rng import derive
from gradleak.harness.request.prepare import Request, prepare
from gradleak.harness.running.runner import run
from gradleak.harness.running.store import RunFolder, read_records
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, read_anatomy

pytestmark = pytest.mark.oracle

RECORDS, LENGTH, WIDTH, VOCAB = 22, 8, 160, 4000


class _Looks(Clock):
    """Time that is spent after so many looks at the clock."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left, self.seen = looks, 0

    def spent(self) -> bool:
        self.seen += 1
        return self.seen > self.left


@pytest.fixture(scope="module")
def crowded() -> tuple[Subject, Batch]:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_inner=2 * WIDTH,
        n_layer=2,
        n_head=4,
        n_positions=32,
        initializer_range=0.045,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    module = transformers.GPT2ForSequenceClassification(config).eval()
    subject = Subject(
        name="gpt2", module=module, anatomy=read_anatomy(module), tokenizer=None, loss=CLASSIFICATION, classes=2
    )
    rng = derive(1, "crowded")
    ids = torch.randint(3, VOCAB, (RECORDS, LENGTH), generator=rng)
    mask = torch.ones_like(ids, dtype=torch.bool)
    return subject, Batch(inputs=ids, mask=mask, labels=torch.randint(2, (RECORDS,), generator=rng))


def test_sentences_come_back_from_a_batch_larger_than_the_width(crowded: tuple[Subject, Batch]) -> None:
    subject, batch = crowded
    assert batch.mask.sum() > WIDTH
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "update"))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    found = Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))
    exact = {tuple(r.tolist()) for r in batch.records()} & {tuple(r.tolist()) for r in found.records}
    assert found.ordered
    assert len(exact) >= RECORDS // 2
    assert len(found.records) <= RECORDS


@pytest.mark.parametrize("looks", [0, 3, 60, 420])
def test_a_spent_budget_ends_the_search_with_the_best_so_far(crowded: tuple[Subject, Batch], looks: int) -> None:
    subject, batch = crowded
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "update"))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    clock = _Looks(looks)
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    found = Span()(observation, rng=derive(0, "attack"), clock=clock)
    assert found.status is Status.BUDGET_SPENT
    told, bag = torch.cat(found.records).unique(), batch.inputs.unique()
    assert bool(torch.isin(told, bag).all())
    assert len(told) > len(bag) // 2
    # What is left to do once the time is spent does not depend on how much was planned.
    assert clock.seen < looks + 6 * LENGTH


def test_a_full_space_is_told_from_noise(crowded: tuple[Subject, Batch]) -> None:
    subject, batch = crowded
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "update"))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    found = Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))
    assert "their spectrum is not that of noise" in found.message


def test_rounded_tables_that_leave_no_first_token_are_no_sentences(tmp_path: Path) -> None:
    settings = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    prepared = prepare(
        Request(
            model="random:gpt2",
            batch_size=4,
            max_length=16,
            attacks="span",
            defenses=("quantize(dtype=int8)",),
            settings=settings,
        )
    )
    with RunFolder(tmp_path / "run", prepared.plan) as store:
        run(prepared.plan, prepared.subject, prepared.source, store)
    rounded = read_records(tmp_path / "run")[1]
    assert rounded.status["name"] != "EXACT"
