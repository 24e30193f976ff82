"""Recall under noise on a small GPT-2: the token test beside all other tokens has the predicted power, with the noise that span measures
itself; where the tables tell the tokens, the search itself finds the pairs and no others."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.subspace.noise_level import noise_in
from gradleak.models import Subject, load_subject
from gradleak.span.likelihood.energy_test import own_energy
from gradleak.span.noise.pair_search import noisy_candidates
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, first_layer
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.noise.token_power import TokenTest, mean_power, strengths

RECORDS, LENGTH, VOCAB, BATCHES = 3, 8, 1000, 8


@pytest.fixture(scope="module")
def subject() -> Subject:
    settings = {"n_embd": 96, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB}
    return load_subject("random:gpt2", loss="classification", settings=settings)


def noisy(subject: Subject, seed: int, level: float) -> tuple[Batch, dict[str, torch.Tensor], dict[str, float]]:
    """A batch without repeated tokens, its noisy update, and the noise on every tensor."""
    rng = derive(seed, "recall")
    ids = torch.randperm(VOCAB, generator=rng)[: RECORDS * LENGTH].view(RECORDS, LENGTH)
    labels = torch.randint(subject.classes, (RECORDS,), generator=rng)
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    clean = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, rng)
    std = {name: level * float(tensor.double().square().mean().sqrt()) for name, tensor in clean.items()}
    return batch, {n: t + std[n] * torch.randn(t.shape, generator=rng) for n, t in clean.items()}, std


@pytest.mark.parametrize("level", [1.5, 2.0, 2.5])
def test_told_the_others_recall_is_the_predicted_one(subject: Subject, level: float) -> None:
    """Within .05: 192 tokens in eight batches."""
    (projections,) = subject.anatomy.blocks[0].attention_inputs
    predicted, found = [], []
    for seed in range(BATCHES):
        batch, update, std = noisy(subject, seed, level)
        flow = flow_through(subject, batch, (projections.module,))[projections.module]
        inputs, errors = flow.inputs.flatten(0, 1).double(), flow.errors.flatten(0, 1).double()
        test = TokenTest(columns=errors.shape[1], candidates=VOCAB * LENGTH, false_alarms=FALSE_ALARM_RATE)
        predicted.append(mean_power(test, strengths(inputs, errors), std[projections.weight]))
        gradient = update[projections.weight]
        energy = own_energy(torch.nn.functional.normalize(inputs, dim=1), gradient.double() / noise_in(gradient))
        found.append(float((energy >= test.threshold).double().mean()))
    assert sum(found) / BATCHES == pytest.approx(sum(predicted) / BATCHES, abs=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_tables_and_first_attention_together_place_every_token(subject: Subject, seed: int) -> None:
    batch, update, _ = noisy(subject, seed, 0.1)
    reader = first_layer(update, Model(subject=subject), noise_std=lambda _: 0.0, summands=RECORDS * LENGTH)
    found = noisy_candidates(
        update,
        Model(subject=subject),
        reader,
        noise_std=lambda name: noise_in(update[name]),
        positions=LENGTH,
        rng=derive(seed),
    )
    assert found is not None
    for place, tokens in enumerate(found.tokens):
        assert set(tokens.tolist()) == set(batch.inputs[:, place].tolist())
