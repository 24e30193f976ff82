"""A bottleneck before the head hides nothing from attacks that read the layers below it; an attacker who leaves out what
the draw disturbs, and searches the draw, comes closer than one who matches everything."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.dlg import DLG
from gradleak.attacks.span import Span
from gradleak.attacks.token_support import TokenSupport
from gradleak.core.attack import Candidate
from gradleak.core.batch import Batch, soft_labels
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.stage import Stage
from gradleak.defenses.ppp import PPP
from gradleak.defenses.precode import PRECODE
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

LENGTH = 8


def seen(seed: int, *stages: Stage, informed: bool = True) -> tuple[Observation, Batch]:
    settings = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400}
    subject = load_subject("random:bert", settings=settings, seed=seed)
    channel = Channel(trainer=ClientTrainer(subject=subject, training=LocalTraining()), stages=stages)
    ids = torch.randint(5, 400, (2, LENGTH), generator=derive(seed, "ids"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.tensor([0, 1]))
    trainer = channel.deployed()
    facts = {"subject": trainer.subject, "trainer": trainer, "batch_size": 2, "seq_len": LENGTH, "mask": batch.mask}
    facts |= {"stages": channel.stages} if informed else {}
    return Observation(update=channel.observe(batch, derive(seed, "channel")), knowledge=Knowledge(facts=facts)), batch


@pytest.mark.parametrize("seed", range(3))
def test_span_and_token_rows_are_as_they_were(seed: int) -> None:
    observation, batch = seen(seed, PRECODE(code=32))
    found = Span()(observation, rng=derive(seed, "attack")).records
    assert found is not None
    assert {tuple(record.tolist()) for record in found} == {tuple(ids.tolist()) for ids in batch.inputs}
    rows = TokenSupport()(observation, rng=derive(seed, "attack")).records
    assert rows is not None
    assert {int(token) for record in rows for token in record} == set(batch.inputs.flatten().tolist())


def test_noise_below_the_bottleneck_ends_what_noise_of_that_size_ends() -> None:
    observation, batch = seen(0, PRECODE(code=32), PPP(relative_std=3.0))
    found = Span()(observation, rng=derive(0, "attack")).records or ()
    assert not {tuple(record.tolist()) for record in found} & {tuple(ids.tolist()) for ids in batch.inputs}


@pytest.mark.parametrize("seed", range(3))
def test_the_true_draw_is_what_the_search_looks_for(seed: int) -> None:
    """With the client's draw in its hands, the informed attacker's objective is zero at the truth; at the mean it is not."""
    observation, batch = seen(seed, PRECODE(code=32))
    trainer: ClientTrainer = observation.knowledge.facts["trainer"]
    inputs = trainer.subject.embed(batch.inputs).detach()
    targets = soft_labels(batch.labels, trainer.subject.classes)
    drawn = trainer.with_noise(trainer.prepare(batch), derive(seed, "channel")).noise
    again = trainer.replay(inputs, targets, batch.mask, noise=drawn, differentiable=False)
    skipped = PRECODE(code=32).ignored(trainer) | {trainer.subject.anatomy.token_embedding}
    for name, tensor in observation.update.items():
        if name not in skipped:
            torch.testing.assert_close(again[name], tensor, atol=1e-6, rtol=1e-4)
    objective = DLG().objective_on(observation)
    assert objective is not None and objective(Candidate(inputs=inputs, labels=targets)) > 1e-3
