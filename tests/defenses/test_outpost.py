"""OUTPOST: noise of the size and at the places that it says, rarer and rarer."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses.outpost import Outpost
from gradleak.mechanics.client.stage_noise import released_std
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def subject() -> Subject:
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return load_subject("random:vit", settings=settings)


@pytest.fixture(scope="module")
def batch(subject: Subject) -> Batch:
    pixels = torch.rand(3, *subject.pixel_shape, generator=derive(0, "pixels"))
    return Batch(inputs=pixels, mask=torch.ones(3, dtype=torch.bool), labels=torch.tensor([0, 1, 1]))


@pytest.fixture(scope="module")
def trainer(subject: Subject) -> ClientTrainer:
    return ClientTrainer(subject=subject, training=LocalTraining())


def client_of(trainer: ClientTrainer, batch: Batch, round: int = 0) -> Client:
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer, round=round)


# OUTPOST: changes its input, differs between calls


def test_outpost_perturbs_and_never_twice_the_same(trainer: ClientTrainer, batch: Batch) -> None:
    plain, client, rng = trainer.update(batch, derive(0, "x")), client_of(trainer, batch), derive(1, "outpost")
    first, second = (Outpost().apply(plain, client, rng)[0] for _ in range(2))
    for name, tensor in plain.items():
        if float(trainer.subject.trainable()[name].detach().var(correction=0)) > 0:
            assert not torch.equal(first[name], tensor) and not torch.equal(first[name], second[name]), name


def test_outpost_noise_has_the_size_and_the_place_that_it_says(trainer: ClientTrainer, batch: Batch) -> None:
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    stage = Outpost(prune=0.0, noise=1.0, phi=0.25)
    released, _ = stage.apply(plain, client, derive(1, "outpost"))
    name = max(plain, key=lambda each: plain[each].numel())
    noise = (released[name] - plain[name]).flatten()
    weights = {each: value.detach() for each, value in trainer.subject.trainable().items()}
    fisher = trainer.example_gradients(weights, client.data)[name].square().mean(0).flatten()
    touched = noise != 0
    assert int(touched.sum()) == round(0.25 * noise.numel())
    assert float(fisher[touched].min()) >= float(fisher[~touched].max())
    wanted = min(float(weights[name].var(correction=0)), 1.0)
    # A sample deviation of n normal draws is within 5/sqrt(2n) of 1 but for a chance of 6e-7.
    assert float(noise[touched].std()) == pytest.approx(wanted, rel=5 / math.sqrt(2 * int(touched.sum())))


def test_outpost_says_how_much_noise_it_adds_to_whoever_has_the_weights(trainer: ClientTrainer, batch: Batch) -> None:
    """Over all entries, the noise of a share φ of them has √φ times their deviation; without the weight it is unknown."""
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    stage = Outpost(prune=0.0, phi=0.25)
    released, _ = stage.apply(plain, client, derive(1, "outpost"))
    name = max(plain, key=lambda each: plain[each].numel())
    noise, entries = released[name] - plain[name], plain[name].numel()
    told = stage.noise_std(released[name], trainer.subject.parameters()[name])
    # The mean square of n/4 normal draws is within 5·√(8/n) of its mean but for a chance of 1e-6.
    assert told == pytest.approx(float(noise.square().mean().sqrt()), rel=2.5 * math.sqrt(8 / entries))
    assert stage.noise_std(released[name]) is None
    assert released_std((stage,), name, released[name], trainer=trainer, records=3) == told
    assert released_std((stage,), name, released[name], trainer=None, records=3) is None


def test_outpost_names_the_places_of_the_largest_entries(trainer: ClientTrainer, batch: Batch) -> None:
    """For one record, a released zero is among its 60 % smallest entries: the truth is never counted against, others are."""
    one = Batch(inputs=batch.inputs[:1], mask=batch.mask[:1], labels=batch.labels[:1])
    plain = trainer.update(one, derive(0, "x"))
    released, _ = Outpost().apply(plain, client_of(trainer, one), derive(1, "outpost"))
    both = {n: torch.stack([t, torch.roll(t.flatten(), 1).view_as(t)]) for n, t in plain.items()}
    found = Outpost().surrogate(both, released)
    hidden = {name: tensor == 0 for name, tensor in released.items()}
    assert all(bool((found[name][0][hidden[name]] == 0).all()) for name in plain)
    counted = sum(float((found[name][1][hidden[name]] != 0).sum()) for name in plain)
    assert counted > 0.2 * sum(float(mask.sum()) for mask in hidden.values())


def test_outpost_becomes_rare(trainer: ClientTrainer, batch: Batch) -> None:
    """In round i a release is perturbed with probability 1/(1 + β i): 1 in round 0; 1/3 of 90 draws ± 4 deviations."""
    plain = trainer.update(batch, derive(0, "x"))
    counts = {}
    for round in (0, 16):
        client, rng = client_of(trainer, batch, round), derive(round, "rare")
        released = [Outpost(noise=0.0).apply(plain, client, rng)[0] for _ in range(90)]
        counts[round] = sum(any(not torch.equal(each[n], plain[n]) for n in plain) for each in released)
    assert counts[0] == 90
    assert abs(counts[16] - 30) <= 4 * math.sqrt(90 * (1 / 3) * (2 / 3))
