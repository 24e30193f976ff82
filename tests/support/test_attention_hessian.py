"""Three formulas of the literature that are wrong as printed: the printed form fails here, the corrected one holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.mechanics.attention.softmax import Attention
from tests.support.attention_hessian import logit_curvature, logit_value_curvature, output_jacobian

pytestmark = pytest.mark.oracle


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_derivative_of_attention_in_the_data() -> None:
    """Lemma B.16 of 2310.12462, as restated: attention weights transposed, W in the place of Wᵀ."""
    x, w, u = normal(4, 3, seed=0), normal(3, 3, seed=1), normal(3, 2, seed=2)
    layer = Attention(scores=w.unsqueeze(0), values=u.unsqueeze(0), scale=0.8)
    wanted = torch.autograd.functional.jacobian(layer.output, x)
    assert isinstance(wanted, Tensor)
    assert relative(output_jacobian(layer, x), wanted) < 1e-12

    s, mixed = layer.weights_of(x)[0], x @ u
    gap = mixed.unsqueeze(0) - (s @ mixed).unsqueeze(1)
    printed = (
        torch.einsum("ba,ad,abo->aobd", s, 0.8 * x @ w.T, gap)
        + torch.einsum("ba,do->aobd", s, u)
        + torch.einsum("ka,kd,ako,ab->aobd", s, 0.8 * x @ w.T, gap, torch.eye(4, dtype=torch.float64))
    )
    assert float((printed - wanted).abs().max()) > 0.1


def curvatures(f: Tensor, h: Tensor, c: Tensor) -> Tensor:
    """Autograd's Hessian of ½ (⟨softmax(z), h⟩ − b)² in z, where ⟨f, h⟩ − b = c."""
    b = f @ h - c

    def loss(z: Tensor) -> Tensor:
        return 0.5 * (torch.softmax(z, 0) @ h - b).square()

    found = torch.autograd.functional.hessian(loss, f.log())
    assert isinstance(found, Tensor)
    return found


def test_weight_hessian_in_the_logits() -> None:
    """Definition D.3 of 2309.07418: wrong diagonal term and wrong rank-two coefficient."""
    errors = []
    for seed in range(20):
        f, h = torch.softmax(normal(5, seed=seed), 0), normal(5, seed=100 + seed)
        c = normal(1, seed=200 + seed)[0]
        wanted = curvatures(f, h, c)
        assert relative(logit_curvature(f, h, c), wanted) < 1e-12
        g, fh = f @ h, f * h
        spread = torch.outer(fh, f) + torch.outer(f, fh)
        corrected = (
            c * (fh.diag() - g * f.diag())
            - (g + c) * spread
            + (2 * g * c + g**2) * torch.outer(f, f)
            + torch.outer(fh, fh)
        )
        assert relative(corrected, wanted) < 1e-12, "the expanded form of the same matrix"
        printed = (
            (1 - g) * c * fh.diag()
            - (2 * g + c) * spread
            + (2 * g * c + g**2) * torch.outer(f, f)
            + torch.outer(fh, fh)
        )
        errors.append(relative(printed, wanted))
    assert sorted(errors)[10] > 0.5, "the printed form is off by the size of the matrix itself"


def test_mixed_block_of_the_hessian() -> None:
    f, h, c = torch.softmax(normal(5, seed=1), 0), normal(5, seed=2), normal(1, seed=3)[0]
    b = f @ h - c

    def slope(h: Tensor) -> Tensor:
        z = f.log().requires_grad_()
        loss = 0.5 * (torch.softmax(z, 0) @ h - b).square()
        return torch.autograd.grad(loss, z, create_graph=True)[0]

    wanted = torch.autograd.functional.jacobian(slope, h)
    assert isinstance(wanted, Tensor)
    assert relative(logit_value_curvature(f, h, c), wanted) < 1e-12


def test_convexity_condition_is_vacuous_row_by_row() -> None:
    """Lemma F.1 of 2309.07418 divides by σ_min(A_j) of A_j = x_j ⊗ X, which has rank at most n < d²: it is zero.

    Summed over rows the statement is true: λ_min(Σ_j A_jᵀ A_j) = σ_min(A₁)² σ_min(A₂)².
    """
    a1, a2 = normal(4, 3, seed=0), normal(4, 3, seed=1)
    blocks = torch.einsum("jd,ne->jnde", a1, a2).reshape(4, 4, 9)
    one = torch.linalg.svdvals(blocks[0].T @ blocks[0])
    assert int((one > 1e-12 * one[0]).sum()) == 3
    total = torch.einsum("jnp,jnq->pq", blocks, blocks)
    wanted = (torch.linalg.svdvals(a1)[-1] * torch.linalg.svdvals(a2)[-1]).square()
    assert abs(float(torch.linalg.eigvalsh(total)[0] / wanted) - 1) < 1e-10


def test_logit_slopes_are_rows_not_columns() -> None:
    """2309.07418 calls the vectors p_j columns; only as rows do they make the gradient in the weights."""
    x, w, u, b = normal(4, 3, seed=0), normal(3, 3, seed=1), normal(3, 2, seed=2), normal(4, 2, seed=3)
    leaf = w.unsqueeze(0).requires_grad_()
    loss = 0.5 * (Attention(scores=leaf, values=u.unsqueeze(0), scale=1.0).output(x) - b).square().sum()
    (wanted,) = torch.autograd.grad(loss, leaf)
    p = Attention(scores=w.unsqueeze(0), values=u.unsqueeze(0), scale=1.0).at(x, b).slope[0]
    assert relative(x.T @ p @ x, wanted[0]) < 1e-12
    assert relative(x.T @ p.T @ x, wanted[0]) > 0.1
