"""The factored gradients against autograd, on one small random model of every family; training against torch's own loop."""

from __future__ import annotations

import copy

import pytest
import torch

from gradleak.core.batch import IGNORED, Batch, soft_labels
from gradleak.matching.objectives import Cosine, Distance, Objective
from gradleak.mechanics.client.factored import simulate_gradients
from gradleak.mechanics.client.outer_products import _BLOCK, OuterSum
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "opt", "gpt_neox", "phi")
ENCODERS = ("bert", "roberta", "distilbert")
CASES = (
    [(name, "classification") for name in (*DECODERS, *ENCODERS, "vit")]
    + [(name, "causal-lm") for name in DECODERS]
    + [(name, "masked-lm") for name in ENCODERS]
)


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
    if subject.loss == "causal-lm":
        labels = torch.where(mask, ids, IGNORED)
    elif subject.loss == "masked-lm":
        labels = torch.where((torch.arange(6) % 3 == 1) & mask, ids, IGNORED)
    return Batch(inputs=ids, mask=mask, labels=labels)


def candidate(subject: Subject, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = batch.inputs if subject.modality == "image" else subject.embed(batch.inputs).detach()
    return inputs, soft_labels(batch.labels, subject.classes)


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_factored_gradients_equal_the_clients_for_each_restart(name: str, loss: str) -> None:
    subject = tiny(name, loss)
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining()), private_batch(subject)
    update = trainer.update(batch, torch.Generator())
    names = tuple(n for n in trainer.names() if n != subject.anatomy.token_embedding)
    x, y = candidate(subject, batch)
    mask = batch.mask.repeat(2, *[1] * (batch.mask.ndim - 1))
    found = simulate_gradients(subject, names, torch.cat([x + 0.01, x]), torch.cat([y, y]), mask, restarts=2)
    assert found is not None
    found = {n: part if isinstance(part, OuterSum) else part.detach() for n, part in found.items()}
    replayed = {n: t.detach() for n, t in trainer.replay(x + 0.01, y, batch.mask).items()}
    floor = 1e-6 * update.norm()
    assert all(float(update[n].norm()) <= floor for n in names if n not in found)
    for n, part in found.items():
        dense = part.dense().detach() if isinstance(part, OuterSum) else part
        assert float((dense[0].reshape(update[n].shape) - replayed[n]).norm()) <= floor, n
        assert float((dense[1].reshape(update[n].shape) - update[n]).norm()) <= floor, n


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
    factors = OuterSum(left=torch.randn(3, 5, 8, generator=rng), right=torch.randn(3, 5, 6, generator=rng))
    bias = torch.randn(3, 8, generator=rng)
    observed = {"w": torch.randn(8, 6, generator=rng), "b": torch.randn(8, generator=rng)}
    torch.testing.assert_close(
        objective({"w": factors, "b": bias}, observed), objective({"w": factors.dense(), "b": bias}, observed)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_delta_equals_torchs_own_training_loop(optimizer: str) -> None:
    subject = tiny("bert", "classification")
    batch = private_batch(subject)
    training = LocalTraining(share="delta", steps=4, lr=1e-2, optimizer=optimizer, weight_decay=0.1)
    delta = ClientTrainer(subject=subject, training=training).update(batch, torch.Generator())
    module = copy.deepcopy(subject.module)
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
        "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    }
    stepper = kinds[optimizer](module.parameters())
    for _ in range(4):
        stepper.zero_grad()
        logits = module(input_ids=batch.inputs, attention_mask=batch.mask.long()).logits
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        stepper.step()
    for name, after in module.named_parameters():
        before = subject.module.get_parameter(name)
        if after.grad is None or float(after.grad.norm()) < 1e-7:
            continue  # AdamW divides rounding noise by itself there; no two computations agree on it
        torch.testing.assert_close(delta[name], (after - before).detach(), rtol=2e-2, atol=2e-4)


def test_idle_rows_of_adamw_are_told_from_trained_ones() -> None:
    subject = tiny("bert", "classification")
    batch = private_batch(subject)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(share="delta", steps=3, optimizer="adamw"))
    name = subject.anatomy.token_embedding
    assert name is not None
    moved = (trainer.update(batch, torch.Generator())[name] - trainer.idle(name)).abs().amax(1) > 1e-6
    used = torch.zeros_like(moved)
    used[batch.inputs[batch.mask]] = True
    assert torch.equal(moved, used)


def test_dropout_draws_from_the_given_generator_and_leaves_the_model_in_eval_mode() -> None:
    subject = tiny("bert", "classification")
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining(dropout=True)), private_batch(subject)
    name = subject.anatomy.blocks[0].mlp_output.weight
    one, same, other = (trainer.update(batch, torch.Generator().manual_seed(s))[name] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not subject.module.training


@pytest.mark.parametrize("l1", [0.0, 0.7])
def test_distance_to_a_matrix_of_several_blocks_of_rows_is_that_of_the_dense_residual(l1: float) -> None:
    rng = torch.Generator().manual_seed(0)
    rows, columns = 1000, 300  # four whole blocks and a rest
    assert rows * columns > 4 * _BLOCK and rows % (_BLOCK // columns)
    left, right = (torch.randn(2, 3, n, generator=rng, dtype=torch.float64) for n in (rows, columns))
    target = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    left[:, :, :10], target[:10] = 0.0, 0.0  # exact zeros of the residual, where |.| has a kink
    left, right = left.requires_grad_(), right.requires_grad_()
    factored = OuterSum(left=left, right=right).distance(target, l1)
    residual = left.transpose(1, 2) @ right - target
    dense = residual.square().sum((1, 2)) + l1 * residual.abs().sum((1, 2))
    torch.testing.assert_close(factored, dense)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = torch.autograd.grad(factored @ weights, (left, right))
    torch.testing.assert_close(found, torch.autograd.grad(dense @ weights, (left, right)))
