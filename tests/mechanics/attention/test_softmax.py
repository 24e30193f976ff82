"""Closed forms of bare attention against autograd and finite differences, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.errors import UsageError
from gradleak.mechanics.attention.softmax import Attention, Gradient, Heads, HeadsGradient, data_jacobian
from tests.support.attention_hessian import weight_hessian

pytestmark = pytest.mark.oracle

SHAPES = [(3, 2, 2, 1), (2, 4, 3, 1), (4, 4, 4, 2), (3, 8, 5, 4), (5, 16, 16, 4)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def heads_of(model: int, out: int, count: int, *, scale: float = 0.7, causal: bool = False) -> Heads:
    k = max(1, model // count)
    return Heads(
        query=normal(count, model, k, seed=1) / model**0.5,
        key=normal(count, model, k, seed=2) / k**0.5,
        value=normal(count, model, k, seed=3) / model**0.5,
        output=normal(count, k, out, seed=4) / k**0.5,
        scale=scale,
        causal=causal,
    )


def slow_loss(q: Tensor, k: Tensor, v: Tensor, o: Tensor, x: Tensor, b: Tensor, heads: Heads) -> Tensor:
    """The layer written out head by head, row by row."""
    total = torch.zeros_like(b)
    for h in range(q.shape[0]):
        for i in range(x.shape[0]):
            seen = x[: i + 1] if heads.causal else x
            logits = heads.scale * (x[i] @ q[h]) @ (seen @ k[h]).T
            mixed = torch.softmax(logits, 0) @ seen @ v[h] @ o[h]
            total = total + torch.nn.functional.one_hot(torch.tensor(i), x.shape[0]).double()[:, None] * mixed
    return 0.5 * (total - b).square().sum()


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-300))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seq", "model", "out", "count"), SHAPES)
def test_gradients_are_those_of_autograd(seq: int, model: int, out: int, count: int, causal: bool) -> None:
    heads = heads_of(model, out, count, causal=causal)
    leaves = [t.clone().requires_grad_() for t in (heads.query, heads.key, heads.value, heads.output)]
    x, b = normal(seq, model, seed=5).requires_grad_(), normal(seq, out, seed=6)
    loss = slow_loss(*leaves, x, b, heads)
    *wanted, to_x = torch.autograd.grad(loss, [*leaves, x])
    point = heads.layer().at(x.detach(), b)
    found = heads.split(point.gradient())
    assert abs(float(point.loss) - float(loss.detach())) < 1e-12 * float(loss.detach())
    for mine, theirs in zip((found.query, found.key, found.value, found.output), wanted, strict=True):
        assert relative(mine, theirs) < 1e-12
    assert relative(point.input_gradient(), to_x) < 1e-12
    assert float(point.slope.sum(-1).abs().max()) < 1e-12, "a row of logit slopes sums to zero"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seq", "model", "out", "count"), SHAPES[:4])
def test_data_jacobian_is_that_of_autograd(seq: int, model: int, out: int, count: int, causal: bool) -> None:
    heads = heads_of(model, out, count, causal=causal)
    x, b = normal(seq, model, seed=5), normal(seq, out, seed=6)
    leaves = [t.clone().requires_grad_() for t in (heads.query, heads.key, heads.value, heads.output)]

    def gradient(x: Tensor, b: Tensor) -> Tensor:
        found = torch.autograd.grad(slow_loss(*leaves, x, b, heads), leaves, create_graph=True)
        return torch.cat([each.flatten() for each in found])

    by_x, by_b = torch.autograd.functional.jacobian(gradient, (x, b))
    wanted = torch.cat((by_x.flatten(1), by_b.flatten(1)), 1)
    found = data_jacobian(heads.layer().at(x, b), heads, with_targets=True)
    assert found.shape == wanted.shape
    assert relative(found, wanted) < 1e-11


@pytest.mark.parametrize(("seq", "model", "out", "count"), SHAPES)
def test_adjoint_and_finite_differences(seq: int, model: int, out: int, count: int) -> None:
    heads = heads_of(model, out, count)
    layer, x, b = heads.layer(), normal(seq, model, seed=5), normal(seq, out, seed=6)
    point = layer.at(x, b)
    u, ub = normal(seq, model, seed=7), normal(seq, out, seed=8)
    r = Gradient(scores=normal(*layer.scores.shape, seed=9), values=normal(*layer.values.shape, seed=10))
    forward = point.jvp(u, ub)
    inner = float((forward.flat() * r.flat()).sum())
    to_x, to_b = point.vjp(r)
    size = float(forward.flat().norm() * r.flat().norm())
    assert abs(inner - float((to_x * u).sum() + (to_b * ub).sum())) < 1e-12 * size
    step = 1e-5
    ahead, behind = (layer.at(x + t * u, b + t * ub).gradient().flat() for t in (step, -step))
    assert relative((ahead - behind) / (2 * step), forward.flat()) < 1e-6


def test_split_and_join_are_adjoint() -> None:
    heads = heads_of(8, 5, 4)
    layer = heads.layer()
    g = Gradient(scores=normal(*layer.scores.shape, seed=1), values=normal(*layer.values.shape, seed=2))
    r = HeadsGradient(
        query=normal(*heads.query.shape, seed=3),
        key=normal(*heads.key.shape, seed=4),
        value=normal(*heads.value.shape, seed=5),
        output=normal(*heads.output.shape, seed=6),
    )
    left, right = (heads.split(g).flat() * r.flat()).sum(), (g.flat() * heads.join(r).flat()).sum()
    assert abs(float(left - right)) < 1e-12 * float(g.flat().norm() * r.flat().norm())


def test_leading_axes_are_independent_layers() -> None:
    """Stacked layers and starts give what each gives alone."""
    w, u = normal(3, 1, 4, 4, seed=1), normal(3, 1, 4, 2, seed=2)
    x, b = normal(3, 5, 4, seed=3), normal(3, 5, 2, seed=4)
    stacked = Attention(scores=w, values=u, scale=0.5).at(x, b)
    alone = Attention(scores=w[1], values=u[1], scale=0.5).at(x[1], b[1])
    assert torch.allclose(stacked.gradient().flat()[1], alone.gradient().flat(), rtol=1e-13, atol=0)
    assert torch.allclose(data_jacobian(stacked)[1], data_jacobian(alone), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("seq", "model", "out"), [(2, 2, 1), (3, 3, 2), (4, 2, 3)])
def test_weight_hessian_is_that_of_autograd(seq: int, model: int, out: int) -> None:
    w, u = normal(model, model, seed=1), normal(model, out, seed=2)
    x, b = normal(seq, model, seed=3), normal(seq, out, seed=4)

    def loss(flat: Tensor) -> Tensor:
        first, second = flat[: model * model].view(1, model, model), flat[model * model :].view(1, model, out)
        return 0.5 * (Attention(scores=first, values=second, scale=0.6).output(x) - b).square().sum()

    wanted = torch.autograd.functional.hessian(loss, torch.cat((w.flatten(), u.flatten())))
    assert isinstance(wanted, Tensor)
    layer = Attention(scores=w.unsqueeze(0), values=u.unsqueeze(0), scale=0.6)
    assert relative(weight_hessian(layer, x, b), wanted) < 1e-12


def test_inversion_hessian_at_the_truth_is_gauss_newton() -> None:
    """φ = ½‖g(X) − g*‖²: at exact data the residual vanishes and Hess φ = JᵀJ."""
    heads = heads_of(4, 4, 2)
    layer, x, b = heads.layer(), normal(3, 4, seed=5), normal(3, 4, seed=6)
    target = heads.split(layer.at(x, b).gradient())

    def slope(x: Tensor) -> Tensor:
        point = layer.at(x, b)
        found = heads.split(point.gradient())
        gap = HeadsGradient(
            query=found.query - target.query,
            key=found.key - target.key,
            value=found.value - target.value,
            output=found.output - target.output,
        )
        return point.vjp(heads.join(gap))[0].flatten()

    j = data_jacobian(layer.at(x, b), heads)
    step = 1e-5
    basis = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
    hessian = torch.stack([(slope(x + step * e) - slope(x - step * e)) / (2 * step) for e in basis])
    assert relative(hessian, j.T @ j) < 1e-7


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="scores"):
        Attention(scores=torch.zeros(1, 3, 2), values=torch.zeros(1, 3, 2), scale=1.0)
    layer = Attention(scores=torch.zeros(1, 3, 3), values=torch.zeros(1, 3, 2), scale=1.0)
    with pytest.raises(UsageError, match="inputs"):
        layer.output(torch.zeros(4, 2))
    with pytest.raises(UsageError, match="targets"):
        layer.at(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(UsageError, match="one shape"):
        z = torch.zeros
        Heads(query=z(1, 3, 2), key=z(1, 3, 1), value=z(1, 3, 2), output=z(1, 2, 3), scale=1.0)
    with pytest.raises(UsageError, match="output"):
        Heads(query=z(1, 3, 2), key=z(1, 3, 2), value=z(1, 3, 2), output=z(1, 3, 3), scale=1.0)
    two = Attention(scores=torch.zeros(2, 3, 3), values=torch.zeros(2, 3, 2), scale=1.0)
    with pytest.raises(UsageError, match="one head"):
        weight_hessian(two, torch.zeros(4, 3), torch.zeros(4, 2))
