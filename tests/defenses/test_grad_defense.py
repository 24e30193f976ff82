"""GradDefense perturbs what it says, by sensitivities that finite differences confirm."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.errors import SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.core.update import Update
from gradleak.defenses.grad_defense import GradDefense, root_data, sensitivities, slices, surely_exact
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4})


@pytest.fixture(scope="module")
def trainer(subject: Subject) -> ClientTrainer:
    return ClientTrainer(subject=subject, training=LocalTraining())


@pytest.fixture(scope="module")
def batch(subject: Subject) -> Batch:
    pixels = torch.rand(2, *subject.pixel_shape, generator=derive(0, "pixels"))
    return Batch(inputs=pixels, mask=torch.ones(2, dtype=torch.bool), labels=torch.tensor([0, 1]))


def client_of(trainer: ClientTrainer, batch: Batch) -> Client:
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer)


def test_slices_are_consecutive_and_equally_sensitive() -> None:
    weights = {"a": (3.0, 600), "b": (0.0, 50), "c": (7.0, 1400)}
    place = slices(weights, 10)
    order = torch.cat(list(place.values()))
    assert bool((order.diff() >= 0).all()) and order.unique().tolist() == list(range(10))
    carried = torch.zeros(10, dtype=torch.float64)
    for name, (weight, count) in weights.items():
        carried += weight / count * torch.bincount(place[name], minlength=10)
    torch.testing.assert_close(carried, torch.ones(10, dtype=torch.float64), rtol=0, atol=2 * 0.005)


def test_sensitivities_agree_with_finite_differences(subject: Subject, batch: Batch) -> None:
    """‖∂⟨g_t, 1⟩/∂x‖ of two records from central differences along every pixel; the loss itself is computed in float32."""
    module = subject.module.double()
    try:
        trainer = ClientTrainer(subject=subject, training=LocalTraining())
        wide = Batch(inputs=batch.inputs.double(), mask=batch.mask, labels=batch.labels)
        data = trainer.prepare(wide)
        names, totals, step = trainer.names(), dict.fromkeys(trainer.names(), 0.0), 1e-3

        def sums(x: torch.Tensor, record: int) -> torch.Tensor:
            found = trainer.replay(x, data.targets[record : record + 1], data.mask[:1], differentiable=False)
            return torch.stack([found[name].sum() for name in names])

        for record in range(2):
            x = data.inputs[record : record + 1]
            eye = torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape) * step
            slopes = torch.stack([(sums(x + e, record) - sums(x - e, record)) / (2 * step) for e in eye])
            for name, norm in zip(names, slopes.norm(dim=0).tolist(), strict=True):
                totals[name] += norm / 2
        found = sensitivities(trainer, data)
        largest = max(totals.values())
        assert largest > 0 and found == pytest.approx(totals, rel=1e-3, abs=1e-4 * largest)
    finally:
        module.float()


def drawn_slices(
    stage: GradDefense, trainer: ClientTrainer, released: Update, plain: Update
) -> tuple[dict[str, torch.Tensor], set[int]]:
    """The slice of every entry, and the slices in which the release differs."""
    found = sensitivities(trainer, root_data(trainer, stage.root))
    place = slices({name: (found[name], tensor.numel()) for name, tensor in plain.items()}, stage.bins)
    touched = {int(k) for name in plain for k in place[name][(released[name] != plain[name]).flatten()].unique()}
    return place, touched


def test_half_of_the_slices_get_noise_of_the_stated_spread_and_the_rest_none(
    trainer: ClientTrainer, batch: Batch
) -> None:
    """Thousands of Gaussian entries: their spread is within 5 % (a deviation of a thousand has 2.2 % error; fixed seed)."""
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    stage, rng = GradDefense(std=0.3), derive(1, "noise")
    chosen = []
    for _ in range(2):
        released, _ = stage.apply(plain, client, rng)
        place, touched = drawn_slices(stage, trainer, released, plain)
        error = {name: (released[name] - plain[name]).flatten() for name in plain}
        assert len(touched) == 5
        noise = torch.cat([error[name][torch.isin(place[name], torch.tensor(sorted(touched)))] for name in plain])
        assert noise.numel() > 1000 and bool((noise != 0).float().mean() > 0.999)
        assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
        chosen.append(touched)
    assert chosen[0] != chosen[1], "fresh slices at each call"


def test_slices_are_public(trainer: ClientTrainer, subject: Subject, batch: Batch) -> None:
    """Two clients with different records cut alike, so the attacker can."""
    stage, cuts = GradDefense(std=0.3), []
    for seed in (0, 1):
        pixels = torch.rand(2, *subject.pixel_shape, generator=derive(seed, "own"))
        own = Batch(inputs=pixels, mask=batch.mask, labels=batch.labels)
        plain = trainer.update(own, derive(0, "x"))
        released, _ = stage.apply(plain, client_of(trainer, own), derive(2, "noise"))
        cuts.append(drawn_slices(stage, trainer, released, plain)[1])
    assert cuts[0] == cuts[1]


@pytest.mark.parametrize("std", [0.01, 1.0])
def test_the_attacker_keeps_exact_slices_only(trainer: ClientTrainer, batch: Batch, std: float) -> None:
    """Eight releases of an update of rank two per map: no noisy slice passes (chance 40 · 1e-4), an exact one always does."""
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    stage = GradDefense(std=std)
    for seed in range(8):
        released, _ = stage.apply(plain, client, derive(seed, "noise"))
        place, noisy = drawn_slices(stage, trainer, released, plain)
        exact = set(surely_exact(released, place, 10, std).nonzero().flatten().tolist())
        assert exact and not exact & noisy
        known, seen = stage.studied(released, trainer)
        simulated = known.surrogate({name: tensor.unsqueeze(0) for name, tensor in plain.items()}, seen)
        assert all(torch.equal(simulated[name][0], seen[name]) for name in seen)


def test_noise_of_the_whole_release_keeps_nothing(trainer: ClientTrainer, batch: Batch) -> None:
    """With noise everywhere there is nothing to tell apart, and the attacker compares everything."""
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    stage = GradDefense(std=1.0, perturbed=10)
    released, _ = stage.apply(plain, client, derive(0, "noise"))
    known, seen = stage.studied(released, trainer)
    assert known == stage and seen is released and known.surrogate_is_identity()


@pytest.mark.parametrize("arguments", [{"std": -1.0}, {"bins": 0}, {"root": 0}, {"perturbed": 11}, {"perturbed": 0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="out of range"):
        GradDefense(**arguments)  # type: ignore[arg-type]
