"""JᵀJ v without any weight-sized tensor, against the whole Jacobian made by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.rng import derive
from gradleak.mechanics.client.outer_products import FactoredMatrix
from gradleak.mechanics.derivatives.normal_product import NormalProduct

pytestmark = pytest.mark.oracle

TOKENS, ROWS, COLUMNS = 3, 4, 5


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=derive(seed, "normal product"), dtype=torch.float64)


def simulated(x: Tensor, y: Tensor) -> dict[str, Tensor | FactoredMatrix]:
    """An update of every kind: both factors move, one of them, a dense tensor, and one that does not move."""
    mix = normal(TOKENS * 2, TOKENS * ROWS, seed=1)
    left = torch.tanh(x.flatten(1) @ mix).view(-1, TOKENS, ROWS)
    right = normal(1, TOKENS, COLUMNS, seed=2).expand(len(x), -1, -1)
    return {
        "both": FactoredMatrix(left=left, right=right * y.unsqueeze(-1).sin().mean(1, keepdim=True)),
        "left": FactoredMatrix(left=left.square(), right=right),
        "bias": left.sum(1) * y.sum(1, keepdim=True),
        "still": right.sum(1),
    }


def dense_jacobian(x: Tensor, y: Tensor) -> Tensor:
    def flat(x: Tensor, y: Tensor) -> Tensor:
        parts = simulated(x, y).values()
        return torch.cat([(p.dense() if isinstance(p, FactoredMatrix) else p).flatten(1) for p in parts], 1)[0]

    parts = torch.autograd.functional.jacobian(flat, (x, y))
    return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("seed", range(3))
def test_products_are_those_of_the_whole_jacobian(seed: int) -> None:
    x, y = normal(1, TOKENS, 2, seed=10 + seed), normal(1, TOKENS, seed=20 + seed)
    jacobian = dense_jacobian(x, y)
    product = NormalProduct.of((x.requires_grad_(), y.requires_grad_()), simulated(x, y))
    for k in range(3):
        direction = normal(TOKENS * 3, seed=30 + k)
        parts = product((direction[: TOKENS * 2].view_as(x), direction[TOKENS * 2 :].view_as(y)))
        found = torch.cat([part.flatten() for part in parts])
        torch.testing.assert_close(found, jacobian.T @ (jacobian @ direction), rtol=1e-10, atol=1e-10)


def test_restarts_do_not_mix() -> None:
    x, y = normal(4, TOKENS, 2, seed=5), normal(4, TOKENS, seed=6)
    directions = normal(4, TOKENS, 2, seed=7), normal(4, TOKENS, seed=8)
    together = NormalProduct.of((x.requires_grad_(), y.requires_grad_()), simulated(x, y))(directions)
    for k in range(4):
        one, other = (t.detach()[k : k + 1].requires_grad_() for t in (x, y))
        alone = NormalProduct.of((one, other), simulated(one, other))([d[k : k + 1] for d in directions])
        for part, whole in zip(alone, together, strict=True):
            torch.testing.assert_close(part[0], whole[k], rtol=1e-10, atol=1e-10)
