"""The sign span on AdamW deltas and sign-compressed gradients of MiniLM, beside chance."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.sign_span import SignSpan
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(
    ("training", "chain"),
    [(LocalTraining(share="delta", optimizer="adamw", lr=1e-3), "none"), (LocalTraining(), "sign()")],
    ids=["adamw", "sign"],
)
def test_finds_most_of_eight_tokens_among_thirty_thousand(training: LocalTraining, chain: str) -> None:
    subject = load_subject("minilm", loss="classification", seed=0)
    ids = torch.randint(subject.anatomy.vocab_size, (1, 8), generator=derive(0, "ids"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.tensor([0]))
    trainer = ClientTrainer(subject=subject, training=training)
    channel = Channel(trainer=trainer, stages=catalogue.make_stages(chain))
    update = channel.observe(batch, derive(0))
    facts = {"subject": subject, "trainer": trainer, "stages": channel.stages, "batch_size": 1, "seq_len": 8}
    found = SignSpan()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0))
    assert int(torch.isin(ids[0], found.records[0]).sum()) >= 5
    assert len(found.records[0]) == 8
    assert found.adapted == (("sign",) if chain != "none" else ())
