"""The predicted influence of a perturbation, against the movement of the recovered data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.mechanics.attention.softmax import Attention, data_jacobian
from gradleak.mechanics.derivatives.jacobian import Jacobian, attention_jacobian
from gradleak.theory.error.bounds import estimated_bounds
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


def test_influence_by_matching_bare_attention() -> None:
    """Noise and pruning; the bounds below; the regularized form; singular directions; the null space of Jᵀ."""
    layer, x, b = problem(4, 8, seed=3)
    point = layer.at(x, b)
    jacobian = attention_jacobian(point)
    clean = point.gradient().flat()
    matrix = jacobian.dense()

    def named(flat: Tensor) -> dict[str, Tensor]:
        return {"scores": flat[:64].view(1, 8, 8), "values": flat[64:].view(1, 8, 8)}

    g = rng(1)
    noise = 1e-5 * float(clean.square().mean().sqrt()) * torch.randn(clean.shape, dtype=clean.dtype, generator=g)
    small = clean.abs().argsort()[:4]
    pruned = torch.zeros_like(clean)
    pruned[small] = -clean[small]
    for perturbation, tolerance in ((noise, 0.05), (pruned, 0.05)):
        found = influence(jacobian, named(perturbation), tolerance=1e-12)
        exact = torch.linalg.lstsq(matrix, perturbation).solution
        assert abs(found.norm / float(exact.norm()) - 1) < 1e-6
        assert found.lower <= found.lower_by_quotient <= found.norm
        assert found.lower_by_quotient > 1e-4 * found.norm, "not vacuous"
        measured = float((match(layer, x, b, clean + perturbation, steps=8) - x).norm())
        assert abs(found.norm / measured - 1) < tolerance
    u, s, _ = torch.linalg.svd(matrix, full_matrices=True)
    for i in (0, 10, 31):
        found = influence(jacobian, named(1e-3 * u[:, i]), tolerance=1e-12)
        assert abs(found.norm * float(s[i]) / 1e-3 - 1) < 1e-6
    assert influence(jacobian, named(u[:, -1])).norm < 1e-8, "noise that no data could make protects nothing"
    ridge = influence(jacobian, named(noise), regularization=0.1, tolerance=1e-12)
    wanted = torch.linalg.solve(matrix.T @ matrix + 0.1 * torch.eye(32, dtype=torch.float64), matrix.T @ noise)
    assert abs(ridge.norm / float(wanted.norm()) - 1) < 1e-6
    assert abs(largest_eigenvalue(jacobian) / float(s[0]) ** 2 - 1) < 1e-5
    assert influence(jacobian, named(torch.zeros_like(noise))).norm == 0.0


def test_influence_per_record() -> None:
    layer, x, b = problem(3, 8, seed=4)
    xs, bs = torch.stack((x, 0.5 * x.flip(0))), torch.stack((b, b.roll(1, 0)))
    point = layer.at(xs, bs)
    blocks = data_jacobian(point)
    matrix = torch.cat(list(blocks), 1) / 2
    jacobian = Jacobian(
        shape=tuple(xs.shape),
        update={"g": torch.zeros(128, dtype=torch.float64)},
        forward=lambda v: {"g": matrix @ v.flatten()},
        adjoint=lambda r: (matrix.T @ r["g"]).view(xs.shape),
    )
    noise = torch.randn(128, dtype=torch.float64, generator=rng(0))
    found = influence(jacobian, {"g": noise}, tolerance=1e-12)
    exact = torch.linalg.lstsq(matrix, noise).solution.view(2, -1)
    for mine, theirs in zip(found.per_record, exact.norm(dim=1), strict=True):
        assert abs(mine / float(theirs) - 1) < 1e-6
    for record in (0, 1):
        estimate = estimated_bounds(jacobian, sigma=0.1, prior_std=1.0, rng=rng(1), probes=200, steps=48, record=record)
        inverse = torch.linalg.inv(matrix.T @ matrix / 0.01 + torch.eye(48, dtype=torch.float64))
        wanted = float(inverse.diagonal()[24 * record : 24 * record + 24].mean())
        assert abs(estimate.with_prior.lower - wanted) < 4 * estimate.with_prior.standard_error
