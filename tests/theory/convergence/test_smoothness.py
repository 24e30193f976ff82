"""The polynomial smoothness constants against derivatives by autograd, and the exponential one against any use."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.errors import SpecError
from gradleak.theory.convergence.smoothness import derivative_bounds, smoothness

pytestmark = pytest.mark.oracle


def test_softmax_derivatives_never_exceed_their_bounds() -> None:
    """20 000 draws, most of them peaked; the first bound is attained (two equal atoms), so it cannot be lowered."""
    rng = torch.Generator().manual_seed(0)
    worst = torch.zeros(3, dtype=torch.float64)
    for size in (2, 3, 8):
        f = torch.softmax(3 * torch.randn(6667, size, generator=rng).double(), -1)
        u, v = torch.randn(2, 6667, size, generator=rng).double()
        if size == 2:
            f[0] = 0.5
            u[0] = v[0] = torch.tensor([-1.0, 1.0])
        du, dv = u - (f * u).sum(-1, keepdim=True), v - (f * v).sum(-1, keepdim=True)
        first, second = (f * du * dv).sum(-1), (f * du**2 * dv).sum(-1)
        third = (f * du**3 * dv).sum(-1) - 3 * (f * du**2).sum(-1) * first
        reach = [x.max(-1).values - x.min(-1).values for x in (v, u)]
        for i, value in enumerate((first, second, third)):
            bound = torch.tensor([derivative_bounds(float(a), float(b))[i] for a, b in zip(*reach, strict=True)])
            worst[i] = max(worst[i], float((value.abs() / bound).max()))
    assert float(worst.max()) <= 1 + 1e-12
    assert float(worst[0]) == pytest.approx(1.0)
    assert float(worst.min()) > 0.2


def test_the_cumulants_are_the_derivatives() -> None:
    rng = torch.Generator().manual_seed(1)
    z, u, v = torch.randn(3, 6, generator=rng).double()
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = (torch.softmax(z + t * u, -1) * v).sum()
    found = []
    for _ in range(3):
        (value,) = torch.autograd.grad(value, t, create_graph=True)
        found.append(float(value.detach()))
    f = torch.softmax(z, -1)
    du, dv = u - f @ u, v - f @ v
    first = float((f * du * dv).sum())
    third = float((f * du**3 * dv).sum()) - 3 * float((f * du**2).sum()) * first
    assert found == pytest.approx([first, float((f * du**2 * dv).sum()), third], abs=1e-12)


def instance(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    rng = torch.Generator().manual_seed(seed)
    x, b = torch.randn(2, 4, 3, generator=rng).double()
    v = torch.randn(3, 3, generator=rng).double() / math.sqrt(3)
    return x, v, b, 1 / math.sqrt(3)


@pytest.mark.parametrize("seed", range(4))
def test_curvature_of_the_loss_stays_below_both_constants(seed: int) -> None:
    """200 points and directions of every size; the derivatives along a unit direction bound the norms from below."""
    x, v, b, s = instance(seed)
    bound = smoothness(x, v, b, scale=s)
    rng = torch.Generator().manual_seed(100 + seed)
    largest = [0.0, 0.0]
    for draw in range(200):
        w = torch.randn(3, 3, generator=rng).double() * 10 ** (draw % 4 - 2)
        direction = torch.randn(3, 3, generator=rng).double()
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        scores = s * x @ (w + t * direction / direction.norm()) @ x.T
        value = 0.5 * (torch.softmax(scores, -1) @ x @ v - b).square().sum()
        for order in range(3):
            (value,) = torch.autograd.grad(value, t, create_graph=True)
            if order:
                largest[order - 1] = max(largest[order - 1], abs(float(value.detach())))
    assert largest[0] <= bound.gradient and largest[1] <= bound.hessian
    # Not vacuous: within four decades of what a few hundred draws show.
    assert largest[0] > 1e-3 * bound.gradient and largest[1] > 1e-4 * bound.hessian


def test_the_published_constant_is_vacuous_here() -> None:
    """Hundreds of decades above the polynomial one, on data of unit size."""
    found = smoothness(*instance(0)[:3], scale=instance(0)[3])
    assert found.published_log10 > 50
    assert math.log10(found.hessian) < 5


def test_shapes_that_do_not_fit() -> None:
    x, v, b, s = instance(0)
    with pytest.raises(SpecError, match="needs X"):
        smoothness(x, v, b[:2], scale=s)
    with pytest.raises(SpecError, match="scale"):
        smoothness(x, v, b, scale=0.0)
