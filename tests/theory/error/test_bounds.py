"""The law of the error of a reconstruction and its bounds, against an attacker that solves the matching problem to the end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import soft_labels
from gradleak.core.errors import UsageError
from gradleak.mechanics.attention.softmax import Attention, data_jacobian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import Jacobian, attention_jacobian, flatten, update_jacobian
from gradleak.models import load_subject
from gradleak.privacy.bounds.cramer_rao import fisher_information, van_trees
from gradleak.theory.error.bounds import estimated_bounds, exact_bounds
from gradleak.theory.error.influence import influence, largest_eigenvalue

pytestmark = pytest.mark.oracle


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(n: int, d: int, seed: int) -> tuple[Attention, Tensor, Tensor]:
    """X, B ~ N(0, 1); W, V ~ N(0, 1)/√d; s = 1/√d."""
    g = rng(seed)
    x, b, w, v = (
        torch.randn(*shape, dtype=torch.float64, generator=g) for shape in ((n, d), (n, d), (1, d, d), (1, d, d))
    )
    return Attention(scores=w / math.sqrt(d), values=v / math.sqrt(d), scale=1 / math.sqrt(d)), x, b


def match(layer: Attention, x: Tensor, b: Tensor, target: Tensor, *, prior: float = 0.0, steps: int = 20) -> Tensor:
    """argmin ½‖g(X) − target‖² + ½ prior ‖X‖², by damped Gauss–Newton from ``x``."""

    def value(x: Tensor) -> float:
        gap = layer.at(x, b).gradient().flat() - target
        return float(gap.square().sum() + prior * x.square().sum())

    best = value(x)
    for _ in range(steps):
        point = layer.at(x, b)
        j = data_jacobian(point)
        slope = j.T @ (point.gradient().flat() - target) + prior * x.flatten()
        step = torch.linalg.solve(j.T @ j + prior * torch.eye(x.numel(), dtype=x.dtype), slope).view_as(x)
        while value(x - step) > best and float(step.norm()) > 1e-14:
            step = step / 4
        x = x - step
        best = min(best, value(x))
    return x


@pytest.mark.parametrize(("n", "d"), [(4, 8), (8, 16), (4, 16)])
@pytest.mark.parametrize("level", [1e-6, 1e-4, 1e-2])
def test_error_law(n: int, d: int, level: float) -> None:
    """Measured over predicted RMSE, 30 draws of noise: between 0.8 and 1.3."""
    layer, x, b = problem(n, d, seed=1)
    point = layer.at(x, b)
    clean = point.gradient().flat()
    sigma = level * float(clean.square().mean().sqrt())
    predicted = exact_bounds(attention_jacobian(point), sigma=sigma).rmse
    g = rng(2)
    errors = []
    for _ in range(30):
        noise = sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=g)
        errors.append((match(layer, x, b, clean + noise, steps=6) - x).square().mean())
    measured = float(torch.stack(errors).mean().sqrt())
    assert 0.8 <= measured / predicted <= 1.3, (measured, predicted)


@pytest.mark.parametrize("level", [0.01, 0.1, 0.3])
def test_van_trees_is_never_crossed_and_not_vacuous(level: float) -> None:
    """Attackers with the right prior, started at the truth, over 40 draws of data: the mean error stays above it."""
    errors, jacobians = [], []
    g = rng(5)
    for seed in range(40):
        layer, x, b = problem(3, 6, seed=7)
        x = torch.randn(x.shape, dtype=x.dtype, generator=rng(100 + seed))
        point = layer.at(x, b)
        clean = point.gradient().flat()
        jacobians.append(data_jacobian(point))
        noise = level * torch.randn(clean.shape, dtype=clean.dtype, generator=g)
        found = match(layer, x, b, clean + noise, prior=level**2, steps=12)
        errors.append(float((found - x).square().mean()))
    bound = van_trees([fisher_information(j, level) for j in jacobians], torch.eye(18).numpy())
    mean = sum(errors) / len(errors)
    assert bound < mean < 30 * bound, (bound, mean)
    assert bound > 1e-3 * level**2


def test_order_of_the_bounds_and_null_directions() -> None:
    matrix = torch.randn(20, 8, dtype=torch.float64, generator=rng(0))
    full = exact_bounds(matrix, sigma=0.1, prior_std=1.0)
    assert full.null == 0
    assert full.fisher_trace <= full.cramer_rao and full.with_prior is not None and full.with_prior <= full.cramer_rao
    assert abs(full.rmse - 0.1 * math.sqrt(float(torch.linalg.inv(matrix.T @ matrix).trace()) / 8)) < 1e-12
    flat = matrix.clone()
    flat[:, 0] = flat[:, 1]
    null = exact_bounds(flat, sigma=0.1, prior_std=1.0)
    assert null.null == 1 and math.isinf(null.cramer_rao) and math.isfinite(null.cramer_rao_seen)
    assert null.with_prior is not None and null.with_prior >= 1 / 8, "one of eight directions stays at the prior"
    estimate = estimated_bounds(
        Jacobian(
            shape=(8,),
            update={"g": torch.zeros(20, dtype=torch.float64)},
            forward=lambda v: {"g": flat @ v},
            adjoint=lambda r: flat.T @ r["g"],
        ),
        sigma=0.1,
        prior_std=1.0,
        rng=rng(3),
        probes=400,
        steps=8,
    )
    assert estimate.sure <= null.with_prior
    assert abs(estimate.with_prior.lower - null.with_prior) < 4 * estimate.with_prior.standard_error
    assert abs(estimate.fisher_trace - null.fisher_trace) < 4 * estimate.fisher_error


def test_layer_norm_hides_one_direction_per_token() -> None:
    """BERT normalizes its embeddings first: a shift of a token by the all-ones vector does not move the update."""
    settings = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 260}
    subject = load_subject("random:bert", loss="classification", settings=settings)
    subject.module.double()
    ids = torch.tensor([[5, 9, 11]])
    x, mask = subject.embed(ids).detach(), torch.ones_like(ids, dtype=torch.bool)
    targets = soft_labels(torch.tensor([1]), subject.classes).double()
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    jacobian = update_jacobian(trainer, x, targets, mask)
    shift = torch.zeros_like(x)
    shift[0, 1] = 1.0
    assert float(flatten(jacobian.forward(shift)).norm()) < 1e-12 * largest_eigenvalue(jacobian) ** 0.5
    bounds = exact_bounds(jacobian, sigma=1e-3, rank_tolerance=1e-9)
    assert bounds.null >= 3 and math.isinf(bounds.cramer_rao)


def test_wrong_input_is_refused() -> None:
    layer, x, b = problem(3, 6, seed=1)
    jacobian = attention_jacobian(layer.at(x, b))
    with pytest.raises(UsageError, match="noise per entry"):
        exact_bounds(jacobian, sigma=0.0)
    with pytest.raises(UsageError, match="prior"):
        exact_bounds(jacobian, sigma=1.0, prior_std=-1.0)
    with pytest.raises(UsageError, match="floating-point format"):
        exact_bounds(torch.ones(3, 2, dtype=torch.int64), sigma=1.0)
    with pytest.raises(UsageError, match="rank tolerance"):
        exact_bounds(jacobian, sigma=1.0, rank_tolerance=2.0)
    with pytest.raises(UsageError, match="J is zero"):
        exact_bounds(torch.zeros(3, 2), sigma=1.0)
    with pytest.raises(UsageError, match="no record"):
        estimated_bounds(jacobian, sigma=1.0, prior_std=1.0, rng=rng(0), record=5)
    with pytest.raises(UsageError, match="regularization"):
        influence(jacobian, {}, regularization=-1.0)
    with pytest.raises(UsageError, match="not part"):
        influence(jacobian, {"nothing": torch.zeros(1)})
    with pytest.raises(UsageError, match="shape"):
        influence(jacobian, {"scores": torch.zeros(1)})
