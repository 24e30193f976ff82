"""Refiner, Learning to Obscure and ATS do what they say to images, and say no to what they cannot serve."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.identification import Identification
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.errors import ModelError, SpecError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._obscuring import shuffled
from gradleak.defenses.ats import ATS
from gradleak.defenses.learning_to_obscure import LearningToObscure
from gradleak.defenses.refiner import Refiner
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def trainer() -> ClientTrainer:
    subject = load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4, "num_channels": 1})
    return ClientTrainer(subject=subject, training=LocalTraining())


def test_shuffling_keeps_entries_and_changes_their_places() -> None:
    given = {"a": torch.arange(50.0).view(5, 10), "ones": torch.ones(3)}
    found = shuffled(given, derive(0, "s"))
    assert torch.equal(found["a"].flatten().sort().values, given["a"].flatten())
    assert not torch.equal(found["a"], given["a"]) and torch.equal(found["ones"], given["ones"])


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
