"""ATS: policies, their scores against plain loops, and the search for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import DataError, SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses._augmentations import augment
from gradleak.defenses._obscuring import gradient_at, own_weights
from gradleak.defenses.ats import ATS, accuracy_score, privacy_score, read_policies, search, write_policies
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def trainer() -> ClientTrainer:
    subject = load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4, "num_channels": 1})
    return ClientTrainer(subject=subject, training=LocalTraining())


def smooth(count: int, seed: int) -> Tensor:
    """Images without noise: a random plane each."""
    rng = derive(seed, "planes")
    axis = torch.linspace(-1, 1, 8)
    slopes = 0.5 * torch.rand(count, 2, generator=rng) - 0.25
    return (0.5 + slopes[:, :1, None] * axis.view(1, 8, 1) + slopes[:, 1:, None] * axis.view(1, 1, 8)).unsqueeze(1)


def client_of(trainer: ClientTrainer, size: int = 2, seed: int = 0) -> Client:
    batch = Batch(inputs=smooth(size, seed), mask=torch.ones(size, dtype=torch.bool), labels=torch.arange(size) % 2)
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer)


# ATS


def test_policies_are_read_as_they_are_written() -> None:
    assert read_policies("3-1-7+43-18") == ((3, 1, 7), (43, 18))
    assert write_policies(((3, 1, 7), (43, 18))) == "3-1-7+43-18"
    for wrong in ("", "3-", "a", "50", "1-2-3-4", "1++2"):
        with pytest.raises(SpecError, match="ats: policies"):
            ATS(policies=wrong)


def test_each_image_gets_one_of_the_policies(trainer: ClientTrainer) -> None:
    client = client_of(trainer, size=16)
    found = ATS(policies="35+14").apply(client, derive(0, "a")).inputs
    options = [augment(client.data.inputs, policy) for policy in ((35,), (14,))]
    hits = torch.stack([(found - option).abs().flatten(1).amax(1) == 0 for option in options])
    assert bool((hits.sum(0) == 1).all()) and bool(hits.any(1).all())


def test_a_searched_policy_can_be_any_of_them(trainer: ClientTrainer) -> None:
    """A draw far out on one policy trains on that policy's images; zeros on their average."""
    data = client_of(trainer, size=2).data
    inputs, targets = data.inputs.unsqueeze(0), data.targets.unsqueeze(0)
    options = [augment(data.inputs, policy) for policy in ((35,), (14,))]
    for draw, wanted in (([[99.0, 0.0], [0.0, 99.0]], [options[0][0], options[1][1]]), ([[0.0] * 2] * 2, None)):
        found, _ = ATS(policies="35+14").guessed(inputs, targets, torch.tensor(draw).unsqueeze(0))
        expected = torch.stack(options).mean(0) if wanted is None else torch.stack(wanted)
        torch.testing.assert_close(found[0], expected)


def test_the_privacy_score_is_the_mean_cosine_over_the_grid(trainer: ClientTrainer) -> None:
    """Against a loop over blends, gradients taken one by one."""
    data, weights = client_of(trainer, size=2).data, own_weights(trainer)
    rng, total = derive(4, "n"), 0.0
    for place in range(2):
        one = replace(data, inputs=data.inputs[[place]], targets=data.targets[[place]], mask=data.mask[[place]])
        noise = torch.rand(one.inputs.shape, generator=rng)
        rows = []
        for step in range(21):
            blend = replace(one, inputs=(1 - step / 20) * noise + step / 20 * one.inputs)
            found = gradient_at(trainer, weights, blend, differentiable=False)
            rows.append(torch.cat([found[name].flatten() for name in weights]))
        total += sum(float(torch.cosine_similarity(row, rows[-1], dim=0)) for row in rows) / 21
    assert privacy_score(trainer, data, derive(4, "n")) == pytest.approx(total / 2, abs=1e-4)


def test_the_accuracy_score_prefers_images_that_differ(trainer: ClientTrainer) -> None:
    """Equal images have a correlation of rank one: the other eigenvalues are 0 and cost 1/ε each."""
    data = client_of(trainer, size=4).data
    equal = replace(data, inputs=data.inputs[[0] * 4])
    assert accuracy_score(trainer, equal, derive(0, "w")) < -2.9e5 < accuracy_score(trainer, data, derive(0, "w"))


def test_a_search_orders_what_passes_by_privacy(trainer: ClientTrainer) -> None:
    data = client_of(trainer, size=3).data
    found = search(trainer, data, candidates=5, share=0.5, rng=derive(0, "search"))
    assert len(found) == 3 and [each.privacy for each in found] == sorted(each.privacy for each in found)
    everything = search(trainer, data, candidates=5, share=1.0, rng=derive(0, "search"))
    assert {each.policy for each in found} <= {each.policy for each in everything} and len(everything) == 6
    with pytest.raises(DataError, match="at least two"):
        search(trainer, client_of(trainer, size=1).data, candidates=1, rng=derive(0, "search"))
