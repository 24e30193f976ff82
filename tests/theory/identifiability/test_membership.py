"""The recall that ``predict`` forecasts for the attack ``token_span``, against that attack on released updates of real modules
behind a clip and Gaussian noise: within .04, where noise leaves some of the tokens and hides others.
"""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.attacks.token_span import TokenSpan
from gradleak.core.attack import Attack
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.defenses.clip import Clip
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.identifiability.membership import FirstTest, first_test
from gradleak.theory.prediction.predict import predict
from gradleak.theory.prediction.stand_in import stand_in_batch
from gradleak.theory.prediction.types import Noise

pytestmark = pytest.mark.oracle

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 32,
}


def subject_of(kind: str, seed: int) -> Subject:
    return load_subject(f"random:{kind}", loss="classification", seed=seed, settings=SIZES)


def foretold(subject: Subject, batch: Batch, noise_multiplier: float, *, seed: int) -> FirstTest:
    flows = flow_through(subject, batch, [m.module for m in subject.anatomy.blocks[0].attention_inputs])
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "gradient"))
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in update.values()))
    found = first_test(
        subject,
        batch,
        flows,
        noise_std=[noise_multiplier * norm] * len(flows),
        dtype=torch.float32,
        seed=seed,
        draws=24,
    )
    assert isinstance(found, FirstTest)
    return found


def measured(attack: Attack, subject: Subject, batch: Batch, noise_multiplier: float, seed: int) -> tuple[float, int]:
    """Share of the batch's tokens found, and how many others."""
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    channel = Channel(trainer=trainer, stages=(Clip(max_norm=1e-3), Gaussian(noise_multiplier=noise_multiplier)))
    facts = {"subject": subject, "trainer": trainer, "stages": channel.stages}
    facts |= {"batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
    released = channel.observe(batch, derive(seed, "channel"))
    found = attack(Observation(update=released, knowledge=Knowledge(facts=facts)), rng=derive(seed, "attack"))
    bag, truth = {t for record in found.records for t in record.tolist()}, set(batch.inputs.flatten().tolist())
    return len(bag & truth) / len(truth), len(bag - truth)


@pytest.mark.parametrize(
    ("kind", "records", "noise_multiplier"),
    [
        ("gpt2", 1, 5e-5),
        ("gpt2", 4, 3e-5),
        ("llama", 1, 2e-4),
        ("llama", 4, 1e-4),
        ("bert", 1, 3e-6),
        ("bert", 4, 1e-6),
    ],
)
def test_forecast_recall_of_token_span_is_its_measured_recall(kind: str, records: int, noise_multiplier: float) -> None:
    predicted, recall, false, others = [], [], 0.0, 0
    for seed in range(3):
        subject = subject_of(kind, seed)
        batch = stand_in_batch(subject, batch_size=records, seq_len=8, seed=seed)
        told = foretold(subject, batch, noise_multiplier, seed=seed)
        predicted.append(told.recall)
        false += told.false / 3
        for draw in range(24):
            share, wrong = measured(TokenSpan(), subject, batch, noise_multiplier, 100 * seed + draw)
            recall.append(share)
            others += wrong
    assert 0.1 < sum(predicted) / 3 < 0.9, "a level where noise decides"
    assert sum(recall) / len(recall) == pytest.approx(sum(predicted) / 3, abs=0.04)
    assert others / len(recall) == pytest.approx(false, abs=0.5)


def test_predict_tells_the_same_number() -> None:
    subject = subject_of("gpt2", 0)
    batch = stand_in_batch(subject, batch_size=1, seq_len=8, seed=0)
    told = predict(subject, batch, training=LocalTraining(), noise=Noise(value=1e-4), origin="test").first_test
    exact = predict(subject, batch, training=LocalTraining(), noise=Noise(), origin="test").first_test
    assert isinstance(told, FirstTest) and isinstance(exact, FirstTest)
    assert told.recall == pytest.approx(foretold(subject, batch, 1e-4, seed=0).recall, abs=4 * told.recall_error + 0.1)
    assert (exact.recall, exact.false, exact.rank, exact.draws) == (1.0, 0.0, 8.0, 1)
    delta = predict(subject, batch, training=LocalTraining(share="delta"), noise=Noise(), origin="test").first_test
    assert isinstance(delta, str) and "gradient" in delta
