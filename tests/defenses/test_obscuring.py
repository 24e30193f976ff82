"""Refiner, Learning to Obscure and ATS do what they say to images, and say no to what they cannot serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradleak.attacks.identification import Identification
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.errors import DataError, ModelError, SpecError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._augmentations import COUNT, augment
from gradleak.defenses._obscuring import gradient_at, own_weights, shuffled
from gradleak.defenses.ats import ATS, accuracy_score, privacy_score, read_policies, search, write_policies
from gradleak.defenses.learning_to_obscure import LearningToObscure, distances
from gradleak.defenses.refiner import SYNTHETIC, Refiner, blended, evaluation_network, key_weights, noisiness
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


def cosine(trainer: ClientTrainer, client: Client, inputs: Tensor) -> float:
    """Of the gradient at other inputs to the private one."""
    weights = own_weights(trainer)
    pair = [
        torch.cat([g.flatten() for g in gradient_at(trainer, weights, data, differentiable=False).values()])
        for data in (client.data, replace(client.data, inputs=inputs))
    ]
    return float(torch.cosine_similarity(pair[0], pair[1], dim=0))


# Refiner


def test_the_evaluation_network_reads_the_share_of_noise() -> None:
    """On planes it has never seen; a constant guess has an error of 1/12."""
    network = evaluation_network((1, 8, 8), SYNTHETIC)
    images, shares = blended(smooth(200, 7), 400, derive(1, "blends"))
    assert float((noisiness(network, images) - shares).square().mean()) < 0.02
    ladder = torch.stack([blended(smooth(200, 7), 1, derive(2, "one"))[0][0]])
    noise = torch.rand(ladder.shape, generator=derive(3, "noise"))
    readings = [float(noisiness(network, torch.lerp(smooth(1, 9), noise, share))) for share in (0.0, 0.25, 0.5, 1.0)]
    assert readings == sorted(readings)


def test_the_two_terms_of_refiner_pull_in_opposite_directions(trainer: ClientTrainer) -> None:
    """From the same start the gradient's term leads back to the image, the evaluation network's away from it."""
    client = client_of(trainer, size=1)
    start = torch.lerp(client.data.inputs, torch.rand(client.data.inputs.shape, generator=derive(0, "r")), 0.5)
    back, far = (Refiner(beta=beta).apply(client, derive(0, "r")).inputs for beta in (0.0, 1.0))
    near, middle, away = (float(distances(each, client.data.inputs)) for each in (back, start, far))
    assert near < 0.8 * middle < middle < away


def test_refiner_looks_like_noise_and_keeps_the_direction_of_the_gradient(trainer: ClientTrainer) -> None:
    client = client_of(trainer)
    network = evaluation_network((1, 8, 8), SYNTHETIC)
    start = torch.rand(client.data.inputs.shape, generator=derive(0, "r"))
    found = Refiner().apply(client, derive(0, "r"))
    before, after = noisiness(network, client.data.inputs).mean(), noisiness(network, found.inputs).mean()
    assert float(after) > float(before) + 0.5
    assert cosine(trainer, client, found.inputs) > max(0.9, cosine(trainer, client, start))
    assert torch.equal(found.targets, client.data.targets)
    assert float(found.inputs.min()) >= 0.0 and float(found.inputs.max()) <= 1.0


def test_key_weights_are_the_first_order_importance() -> None:
    weights = {"a": torch.tensor([2.0, -1.0]), "b": torch.tensor([3.0])}
    gradients = {"a": torch.tensor([0.5, 4.0]), "b": torch.tensor([-2.0])}
    found = key_weights(weights, gradients, 0.5)
    assert found["a"].tolist() == [1.0, 4.0] and found["b"].tolist() == [3.0]


def test_refiner_reads_public_images_and_refuses_others(trainer: ClientTrainer, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file({"images": smooth(60, 3).contiguous()}, good)
    save_file({"images": torch.zeros(3, 3, 4, 4)}, bad)
    client = client_of(trainer)
    own = Refiner(public=str(good), steps=3).apply(client, derive(0, "r")).inputs
    assert not torch.equal(own, Refiner(steps=3).apply(client, derive(0, "r")).inputs)
    with pytest.raises(DataError, match="no file"):
        Refiner(public=str(tmp_path / "none")).apply(client, derive(0, "r"))
    with pytest.raises(DataError, match="the model takes"):
        Refiner(public=str(bad)).apply(client, derive(0, "r"))


# Learning to Obscure


@pytest.mark.parametrize("match", ["gradient", "step"])
def test_obscured_images_stay_away_and_teach_more_than_noise(trainer: ClientTrainer, match: str) -> None:
    """Judged at ten models that they were not learned with: by the gradient's cosine, or by the loss after a step."""
    client = client_of(trainer, size=4)
    start = torch.rand(client.data.inputs.shape, generator=derive(0, "l"))
    stage = LearningToObscure(match=match)  # type: ignore[arg-type]
    found = stage.apply(client, derive(0, "l")).inputs
    assert float(distances(found, client.data.inputs).min()) > 0.9 * stage.distance
    others = [shuffled(own_weights(trainer), derive(9, "fresh", each)) for each in range(10)]

    def failing(inputs: Tensor) -> float:
        data = replace(client.data, inputs=inputs)
        return sum(float(stage._value(trainer, other, data, client.data).detach()) for other in others)

    assert failing(client.data.inputs) < failing(found) < failing(start)


def test_shuffling_keeps_entries_and_changes_their_places() -> None:
    given = {"a": torch.arange(50.0).view(5, 10), "ones": torch.ones(3)}
    found = shuffled(given, derive(0, "s"))
    assert torch.equal(found["a"].flatten().sort().values, given["a"].flatten())
    assert not torch.equal(found["a"], given["a"]) and torch.equal(found["ones"], given["ones"])


# ATS


def test_policies_are_read_as_they_are_written() -> None:
    assert read_policies("3-1-7+43-18") == ((3, 1, 7), (43, 18))
    assert write_policies(((3, 1, 7), (43, 18))) == "3-1-7+43-18"
    for wrong in ("", "3-", "a", "50", "1-2-3-4", "1++2"):
        with pytest.raises(SpecError, match="ats: policies"):
            ATS(policies=wrong)


@pytest.mark.parametrize("number", range(COUNT))
def test_every_change_changes_keeps_the_box_and_has_a_slope(number: int) -> None:
    images = torch.rand(2, 3, 8, 8, generator=derive(0, "images")).requires_grad_()
    found = augment(images, (number,))
    assert found.shape == images.shape and not torch.equal(found, images)
    assert bool(((found >= 0.0) & (found <= 1.0)).all())
    (slope,) = torch.autograd.grad(found.sum(), images)
    assert bool(torch.isfinite(slope).all()) and bool((slope != 0).any())


def test_changes_are_what_their_names_say() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, :4] = 1.0
    assert torch.equal(augment(image, (35,)), 1.0 - image), "solarize from 0 on inverts"
    torch.testing.assert_close(augment(image, (14,)), torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)
    moved = augment(image, (34,))
    torch.testing.assert_close(moved[0, 0], torch.zeros(8, 8), atol=1e-5, rtol=0)


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


# All three


@pytest.mark.parametrize(
    "stage", [Refiner(steps=20), LearningToObscure(steps=50), ATS(policies="7-30-45")], ids=lambda s: type(s).__name__
)
def test_identification_ranks_the_private_image(trainer: ClientTrainer, stage: DataStage) -> None:
    """Five ranks among 25 that sum up to 10 at most: by chance, C(10, 5) / 25⁵ ≈ 3e-5."""
    ranks = []
    for seed in range(5):
        images = torch.rand(25, 1, 8, 8, generator=derive(seed, "images"))
        batch = Batch(inputs=images[:1], mask=torch.ones(1, dtype=torch.bool), labels=torch.tensor([1]))
        channel = Channel(trainer=trainer, stages=(stage,))
        order = torch.randperm(25, generator=derive(seed, "order"))
        facts = {"subject": trainer.subject, "trainer": trainer, "batch_size": 1, "stages": channel.stages}
        facts |= {"candidates": tuple(images[order]), "labels": [1]}
        update = channel.observe(batch, derive(seed, "channel"))
        found = Identification(distance="cosine")(
            Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(seed, "attack")
        )
        ranks.append(1 + next(i for i, record in enumerate(found.ranking) if torch.equal(record, images[0])))
    assert sum(ranks) <= 10, ranks


@pytest.mark.parametrize("stage", [Refiner(), LearningToObscure(), ATS()], ids=lambda s: type(s).__name__)
def test_text_is_refused(stage: DataStage) -> None:
    text = ClientTrainer(subject=load_subject("random:bert", settings=TINY), training=LocalTraining())
    ids = torch.randint(10, 90, (2, 5), generator=derive(0, "ids"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ModelError, match="does not classify images"):
        stage.apply(Client(batch=batch, data=text.prepare(batch), trainer=text), derive(0, "t"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Refiner(beta=-1.0),
        lambda: Refiner(blend=1.5),
        lambda: Refiner(depth=0.0),
        lambda: Refiner(steps=0),
        lambda: Refiner(lr=0.0),
        lambda: LearningToObscure(distance=2.0),
        lambda: LearningToObscure(penalty=-1.0),
        lambda: LearningToObscure(group=0),
        lambda: LearningToObscure(eta=0.0),
    ],
)
def test_arguments_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(SpecError, match="out of range"):
        make()  # type: ignore[operator]


def test_an_unknown_match_is_refused() -> None:
    with pytest.raises(SpecError, match="Choose gradient or step"):
        LearningToObscure(match="both")  # type: ignore[arg-type]
