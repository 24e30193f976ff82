"""Objectives: slopes against autograd and finite differences, factors against dense tensors."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import IGNORED, Batch, soft_labels
from gradleak.matching.objectives import Cosine, Distance, Objective
from gradleak.mechanics.client.factored import simulate_gradients
from gradleak.mechanics.client.outer_products import FactoredMatrix
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle


def tiny(name: str, loss: str) -> Subject:
    settings: dict[str, object] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"image_size": 16, "patch_size": 8} if name == "vit" else {"vocab_size": 300}
    return load_subject(f"random:{name}", loss=loss, settings=settings, seed=0)


def private_batch(subject: Subject) -> Batch:
    rng = torch.Generator().manual_seed(0)
    if subject.modality == "image":
        pixels = torch.rand(2, 3, 16, 16, generator=rng)
        return Batch(inputs=pixels, mask=torch.ones(2, dtype=torch.bool), labels=torch.tensor([0, 1]))
    ids = torch.randint(10, 250, (2, 6), generator=rng)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    labels = torch.tensor([0, 1])
    if subject.loss.name == "causal-lm":
        labels = torch.where(mask, ids, IGNORED)
    elif subject.loss.name == "masked-lm":
        labels = torch.where((torch.arange(6) % 3 == 1) & mask, ids, IGNORED)
    return Batch(inputs=ids, mask=mask, labels=labels)


def candidate(subject: Subject, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = batch.inputs if subject.modality == "image" else subject.embed(batch.inputs).detach()
    return inputs, soft_labels(batch.labels, subject.classes)


def matching_problem(
    name: str,
) -> tuple[ClientTrainer, Batch, tuple[str, ...], torch.Tensor, torch.Tensor, torch.Tensor]:
    """A tiny subject in float64, a point near the truth and a direction in which to look."""
    subject = tiny(name, "classification")
    subject.module.double()
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining()), private_batch(subject)
    x, y = candidate(subject, batch)
    x, y = x.double(), y.double()
    rng = torch.Generator().manual_seed(1)
    near = (x + 0.1 * x.std() * torch.randn(x.shape, generator=rng, dtype=x.dtype)).requires_grad_()
    direction = torch.randn(x.shape, generator=rng, dtype=x.dtype) * x.std()
    names = tuple(n for n in trainer.names() if n != subject.anatomy.token_embedding)
    batch = batch if subject.modality == "text" else Batch(inputs=x, mask=batch.mask, labels=batch.labels)
    return trainer, batch, names, near, direction, y


def observed_of(
    trainer: ClientTrainer, batch: Batch, names: tuple[str, ...], y: torch.Tensor
) -> dict[str, torch.Tensor]:
    x, _ = candidate(trainer.subject, batch)
    return {n: t.detach() for n, t in trainer.replay(x, y, batch.mask).items() if n in names}


@pytest.mark.parametrize("objective", [Distance(), Distance(l1=0.1), Cosine()], ids=["l2", "l2+l1", "cosine"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt", "bert", "vit"])
def test_objective_slope_equals_autograd_through_the_dense_update(name: str, objective: Objective) -> None:
    trainer, batch, names, near, _, y = matching_problem(name)
    observed = observed_of(trainer, batch, names, y)
    simulated = simulate_gradients(trainer.subject, names, near, y, batch.mask, restarts=1)
    assert simulated is not None
    slope = torch.autograd.grad(objective(simulated, observed)[0], near)[0]
    replayed = {n: t[None] for n, t in trainer.replay(near, y, batch.mask).items() if n in simulated}
    expected = torch.autograd.grad(objective(replayed, observed)[0], near)[0]
    assert float((slope - expected).norm()) <= 1e-5 * float(expected.norm())


# Families whose forward pass stays in float64 throughout; the others compute norms in float32.
@pytest.mark.parametrize("objective", [Distance(), Cosine()], ids=["l2", "cosine"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "distilbert"])
def test_objective_slope_equals_finite_differences(name: str, objective: Objective) -> None:
    trainer, batch, names, near, direction, y = matching_problem(name)
    observed = observed_of(trainer, batch, names, y)

    def value(inputs: torch.Tensor) -> torch.Tensor:
        simulated = simulate_gradients(trainer.subject, names, inputs, y, batch.mask, restarts=1)
        assert simulated is not None
        return objective(simulated, observed)[0]

    slope = float((torch.autograd.grad(value(near), near)[0] * direction).sum())
    step = 1e-4
    with torch.no_grad():
        low, high = near - step * direction, near + step * direction
    measured = (value(high).item() - value(low).item()) / (2 * step)
    assert slope == pytest.approx(measured, rel=1e-4)


@pytest.mark.parametrize("objective", [Distance(), Distance(l1=0.1), Cosine()], ids=["l2", "l2+l1", "cosine"])
def test_objective_is_the_same_on_factors_and_on_dense_tensors(objective: Objective) -> None:
    rng = torch.Generator().manual_seed(0)
    factors = FactoredMatrix(left=torch.randn(3, 5, 8, generator=rng), right=torch.randn(3, 5, 6, generator=rng))
    bias = torch.randn(3, 8, generator=rng)
    observed = {"w": torch.randn(8, 6, generator=rng), "b": torch.randn(8, generator=rng)}
    torch.testing.assert_close(
        objective({"w": factors, "b": bias}, observed), objective({"w": factors.dense(), "b": bias}, observed)
    )
