"""Conjugate gradients and damped steps against direct solves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.mechanics.derivatives.least_squares import conjugate_gradients

pytestmark = pytest.mark.oracle


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def test_conjugate_gradients_solve_every_start_on_its_own() -> None:
    matrices = normal(3, 6, 6, seed=0)
    matrices = matrices @ matrices.mT + torch.eye(6, dtype=torch.float64)
    right = normal(3, 6, seed=1)
    right[1] = 0.0
    found = conjugate_gradients(lambda v: (matrices @ v[..., None])[..., 0], right, iterations=30, tolerance=1e-12)
    assert torch.allclose(found, torch.linalg.solve(matrices, right), rtol=1e-9, atol=1e-12)
