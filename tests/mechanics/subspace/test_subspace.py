"""The column space against independent derivations: known factors, known noise, known laws."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.subspace.subspace import column_space

pytestmark = pytest.mark.oracle

FEATURES, OUTPUTS, RANK = 64, 192, 12


def factors(seed: int, *, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rank, FEATURES, generator=rng)
    d = torch.randn(rank, OUTPUTS, generator=rng)
    return x, x.T @ d


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rank_is_found_in_every_number_format(seed: int, dtype: torch.dtype) -> None:
    _, gradient = factors(seed)
    space = column_space([gradient.to(dtype).float()], noise_std=[0.0], summands=RANK)
    assert space.rank == RANK


def test_what_float16_flushes_counts_as_noise() -> None:
    """Entries a few steps of the smallest float16 numbers in size: the error is that of the steps, not of the entries."""
    x, gradient = factors(0)
    small = (gradient * (4 * 2.0**-24 / float(gradient.square().mean().sqrt()))).half().float()
    space = column_space([small], noise_std=[0.0], summands=RANK)
    assert space.rank == RANK
    assert 0.7 < float((space.residual(x) / space.expected(x)).mean()) < 1.3


@pytest.mark.parametrize("std", [1e-4, 1e-2, 0.3])
def test_announced_noise_is_cut_and_the_expected_residual_is_right(std: float) -> None:
    ratios = []
    for seed in range(20):
        x, gradient = factors(seed)
        noisy = gradient + std * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1000 + seed))
        space = column_space([noisy], noise_std=[std], summands=RANK)
        assert space.rank == RANK
        ratios.append(space.residual(x) / space.expected(x))
    # First-order perturbation theory; 240 ratios with a spread of about 10 % each.
    assert float(torch.cat(ratios).mean()) == pytest.approx(1.0, abs=0.05)


def test_unannounced_noise_is_cut_at_the_optimal_threshold() -> None:
    _, gradient = factors(0)
    noisy = gradient + 0.1 * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1))
    assert column_space([noisy], noise_std=[0.0], summands=RANK).rank == RANK


def test_equals_the_singular_value_decomposition() -> None:
    x, gradient = factors(0)
    space = column_space([gradient], noise_std=[0.0], summands=RANK)
    u = torch.linalg.svd(gradient.double())[0][:, :RANK]
    assert torch.allclose(space.basis @ space.basis.T, u @ u.T, atol=1e-5)
    assert float(space.residual(x).max()) < 1e-5


def test_a_zero_vector_is_no_member() -> None:
    _, gradient = factors(0)
    assert float(column_space([gradient], noise_std=[0.0], summands=RANK).residual(torch.zeros(FEATURES))) == 1.0


def test_random_directions_follow_the_beta_law() -> None:
    _, gradient = factors(0)
    space = column_space([gradient], noise_std=[0.0], summands=RANK)
    squares = space.residual(torch.randn(50_000, FEATURES, generator=torch.Generator().manual_seed(3))).square()
    assert float(squares.mean()) == pytest.approx(1 - RANK / FEATURES, abs=2e-3)
