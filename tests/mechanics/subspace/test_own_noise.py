"""The law of noise tells in which units it is white, and that there is none where signals fill a matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.mechanics.subspace.own_noise import own_noise
from gradleak.mechanics.subspace.subspace import column_space

pytestmark = pytest.mark.oracle

FEATURES, OUTPUTS, RANK = 96, 288, 12
ROUNDED = 0.4247 * 2.0**-8
SEEDS = range(20)


def _product(seed: int, rank: int = RANK) -> Tensor:
    """A sum of outer products over three decades, with features and outputs of unlike size."""
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rank, FEATURES, generator=rng) * torch.randn(FEATURES, generator=rng).exp()
    errors = torch.randn(rank, OUTPUTS, generator=rng) * torch.randn(OUTPUTS, generator=rng).exp()
    return (inputs.double().T * torch.logspace(0, -3, rank, dtype=torch.float64)) @ errors.double()


def _held(space_of: Tensor, seed: int) -> float:
    """Largest share of an input that the space of the gradient leaves out."""
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(RANK, FEATURES, generator=rng) * torch.randn(FEATURES, generator=rng).exp()
    space = column_space([space_of], noise_std=[0.0], summands=1024)
    return float(space.residual(inputs).max())


@pytest.mark.oracle
@pytest.mark.parametrize("factor", [1.0, 1 / 3, 7e-6])
def test_rounding_is_measured_at_any_scale(factor: float) -> None:
    for seed in SEEDS:
        parts = [_product(seed, RANK).bfloat16().double(), _product(seed + 100, RANK).bfloat16().double()]
        noise = own_noise([sum(parts) * factor])
        assert noise is not None
        assert noise.relative == pytest.approx(ROUNDED, rel=0.35)


@pytest.mark.oracle
def test_added_noise_of_one_size_is_measured() -> None:
    for seed in SEEDS:
        rng = torch.Generator().manual_seed(seed + 500)
        clean = _product(seed)
        std = 1e-3 * float(clean.square().mean().sqrt())
        noise = own_noise([clean + std * torch.randn(clean.shape, generator=rng, dtype=torch.float64)])
        assert noise is not None
        assert noise.relative is None
        bulk = torch.linalg.eigvalsh(noise.whitened.columns @ noise.whitened.columns.T)[: FEATURES - RANK]
        assert float(bulk.sum()) / ((FEATURES - RANK) * (OUTPUTS - RANK)) == pytest.approx(1.0, rel=0.05)


@pytest.mark.contract
def test_a_matrix_full_of_signals_is_not_taken_for_noise() -> None:
    """No false alarm in twenty full matrices; with a rate of 5 % that has probability .36, with one of 20 % .01."""
    assert [seed for seed in SEEDS if own_noise([_product(seed, 2 * FEATURES)]) is not None] == []


@pytest.mark.contract
def test_a_scaled_short_format_and_a_wide_storage_leave_the_space_as_it_is() -> None:
    for seed in range(5):
        rounded = _product(seed).float().bfloat16().float()
        held = _held(rounded, seed)
        assert _held(rounded / 3, seed) == pytest.approx(held, rel=1e-3)
        assert _held(rounded.double() / 3, seed) == pytest.approx(held, rel=1e-3)
        whole = _product(seed).float()
        assert _held(whole.double(), seed) == pytest.approx(_held(whole, seed), rel=1e-6)
