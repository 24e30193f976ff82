"""MixUp and InstaHide mix by the law that they state, and what an inverted encoding still tells."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch, TrainingData
from gradleak.core.errors import DataError, ModelError, SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._mixing import guessed_weights, mixing_weights
from gradleak.defenses.instahide import Instahide
from gradleak.defenses.mixup import Mixup
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECOYS = 24


@pytest.fixture(scope="module")
def trainer() -> ClientTrainer:
    subject = load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4})
    return ClientTrainer(subject=subject, training=LocalTraining())


def pixels_of(trainer: ClientTrainer, seed: int) -> Tensor:
    return torch.rand(4 + DECOYS, *trainer.subject.pixel_shape, generator=derive(seed, "pixels"))


def client_of(trainer: ClientTrainer, seed: int = 0, size: int = 4) -> Client:
    pixels = pixels_of(trainer, seed)[:size]
    batch = Batch(inputs=pixels, mask=torch.ones(size, dtype=torch.bool), labels=torch.arange(size) % 2)
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer)


def test_weights_follow_the_dirichlet_law() -> None:
    """4,000 mixtures without a limit against mean and variance of Dirichlet(3, 1, 1, 1), within five standard errors.

    Weights are bounded by 1, so 0.5/√4000 bounds a standard error; false alarm below 1e-5.
    """
    rows = torch.cat([mixing_weights(8, 4, 1.0, derive(seed, "mix")) for seed in range(500)])
    own = rows.view(500, 8, 8).diagonal(dim1=1, dim2=2).flatten()
    assert float(own.mean()) == pytest.approx(3 / 6, abs=5 * 0.5 / math.sqrt(4000))
    assert float(own.var()) == pytest.approx(3 * 3 / (6**2 * 7), rel=0.1)
    others = (rows.sum() - own.sum()) / (3 * len(rows))
    assert float(others) == pytest.approx(1 / 6, abs=5 * 0.5 / math.sqrt(4000))


@pytest.mark.parametrize(("mix", "largest"), [(2, 0.65), (4, 0.65), (6, 0.5)])
def test_a_mixture_keeps_its_limit_and_its_partners_are_different_records(mix: int, largest: float) -> None:
    rows = torch.cat([mixing_weights(7, mix, largest, derive(seed, "mix")) for seed in range(50)])
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows), dtype=torch.float64))
    assert float(rows.max()) <= largest
    assert bool(((rows > 0).sum(1) == mix).all())
    assert bool((rows.view(50, 7, 7).diagonal(dim1=1, dim2=2) > 0).all())


def ranks(trainer: ClientTrainer, stage: DataStage, seed: int, *, magnitudes: bool) -> list[int]:
    """Rank of each mixture's own record among 28 by correlation, for an attacker who holds the mixtures themselves."""

    def centered(images: Tensor) -> Tensor:
        values = (images - 0.5).flatten(1)
        values = values.abs() if magnitudes else values
        values = values - values.mean(1, keepdim=True)
        return values / values.norm(dim=1, keepdim=True)

    data: TrainingData = stage.apply(client_of(trainer, seed), derive(seed, "mix"))
    likeness = centered(data.inputs) @ centered(pixels_of(trainer, seed)).T
    return [int((likeness[place] >= likeness[place, place]).sum()) for place in range(4)]


@pytest.mark.parametrize(
    ("stage", "magnitudes", "found"),
    [(Mixup(), False, True), (Instahide(), False, False), (Instahide(), True, True)],
    ids=["mixup", "instahide, signed", "instahide, magnitudes"],
)
def test_an_inverted_mixture_names_its_record_unless_signs_are_left_in(
    trainer: ClientTrainer, stage: DataStage, magnitudes: bool, found: bool
) -> None:
    """First or second of 28 for more than half of 20 records; by chance 11 of 20 have probability below 1e-7."""
    near = sum(rank <= 2 for seed in range(5) for rank in ranks(trainer, stage, seed, magnitudes=magnitudes))
    assert (near > 10) == found


def test_a_draw_that_is_searched_reaches_every_mixture(trainer: ClientTrainer) -> None:
    """The logarithm of true weights, less that of the mean law, repeats images and labels; zeros are the mean law."""
    client = client_of(trainer)
    data = Mixup().apply(client, derive(0, "mix"))
    true = mixing_weights(4, 4, 0.65, derive(0, "mix"))
    mean = guessed_weights(torch.zeros(1, 4, 4), 4)
    torch.testing.assert_close(mean[0], torch.full((4, 4), 1 / 6) + torch.eye(4) / 3)
    draw = (true.log() - mean[0].double().log()).float().unsqueeze(0)
    images, labels = Mixup().guessed(client.data.inputs.unsqueeze(0), client.data.targets.unsqueeze(0), draw)
    torch.testing.assert_close(images[0], data.inputs)
    torch.testing.assert_close(labels[0], data.targets)


@pytest.mark.parametrize("stage", [Mixup(), Instahide()], ids=["mixup", "instahide"])
def test_too_few_records_and_text_are_refused(trainer: ClientTrainer, stage: DataStage) -> None:
    with pytest.raises(DataError, match="Raise --batch-size"):
        stage.apply(client_of(trainer, size=3), derive(0, "mix"))
    text = ClientTrainer(subject=load_subject("random:bert", settings=TINY), training=LocalTraining())
    ids = torch.randint(10, 90, (4, 5), generator=derive(0, "ids"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ModelError, match="averages images"):
        stage.apply(Client(batch=batch, data=text.prepare(batch), trainer=text), derive(0, "mix"))


@pytest.mark.parametrize("stage", [Mixup, Instahide])
@pytest.mark.parametrize("arguments", [{"mix": 1}, {"mix": 4, "largest": 0.25}, {"largest": 1.5}])
def test_arguments_out_of_range_are_refused(stage: type[Mixup], arguments: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="out of range"):
        stage(**arguments)  # type: ignore[arg-type]
