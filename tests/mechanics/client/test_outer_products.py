"""Sums of outer products against the dense matrix."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.client.outer_products import _BLOCK, FactoredMatrix

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("l1", [0.0, 0.7])
def test_distance_to_a_matrix_of_several_blocks_of_rows_is_that_of_the_dense_residual(l1: float) -> None:
    rng = torch.Generator().manual_seed(0)
    rows, columns = 1000, 300  # four whole blocks and a rest
    assert rows * columns > 4 * _BLOCK and rows % (_BLOCK // columns)
    left, right = (torch.randn(2, 3, n, generator=rng, dtype=torch.float64) for n in (rows, columns))
    target = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    left[:, :, :10], target[:10] = 0.0, 0.0  # exact zeros of the residual, where |.| has a kink
    left, right = left.requires_grad_(), right.requires_grad_()
    factored = FactoredMatrix(left=left, right=right).distance(target, l1)
    residual = left.transpose(1, 2) @ right - target
    dense = residual.square().sum((1, 2)) + l1 * residual.abs().sum((1, 2))
    torch.testing.assert_close(factored, dense)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = torch.autograd.grad(factored @ weights, (left, right))
    torch.testing.assert_close(found, torch.autograd.grad(dense @ weights, (left, right)))
