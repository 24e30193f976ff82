"""The column space against independent derivations: known factors, known noise, known laws."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.mechanics.subspace.noise_level import significant_bits
from gradleak.mechanics.subspace.null_laws import accept, fit_null
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_large_features_is_no_direction(dtype: torch.dtype) -> None:
    """Features of very different sizes, as trained transformers have them: the large ones' rounding stands out of noise that is
    taken for even. The rank is right, and members show what perturbation theory expects of them."""
    ratios = []
    sizes = torch.ones(FEATURES).index_fill(0, torch.arange(FEATURES // 3), 10.0)
    for seed in range(10):
        x, _ = factors(seed)
        x *= sizes
        d = torch.randn(RANK, OUTPUTS, generator=torch.Generator().manual_seed(100 + seed))
        gradient = (x.T @ d).to(dtype).float()
        space = column_space([gradient], noise_std=[0.0], summands=RANK)
        assert space.rank == RANK
        ratios.append(space.residual(x) / space.expected(x))
        plain = (
            gradient.double()
            / gradient.double().square().mean(0).sqrt()
            / (0.4247 * 2.0 ** -significant_bits(gradient))
        )
        edge = FEATURES**0.5 + OUTPUTS**0.5
        assert int((torch.linalg.svdvals(plain) > edge).sum()) > RANK
    # The model of the noise, a_i b_j, has no term for the entry itself; hence a tenth.
    assert float(torch.cat(ratios).mean()) == pytest.approx(1.0, abs=0.1)


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


def test_the_null_law_controls_false_alarms() -> None:
    _, gradient = factors(0)
    space = column_space([gradient], noise_std=[0.0], summands=RANK)
    rng = torch.Generator().manual_seed(2)
    fitted = fit_null(space.residual(torch.randn(1000, FEATURES, generator=rng)))
    fresh = space.residual(torch.randn(200_000, FEATURES, generator=rng))
    for rate in (1e-1, 1e-2, 1e-3):
        alarms = int((fresh < fitted.cut(rate)).sum())
        # Fitted on 1000 points: the tail is known to about half; five standard deviations of counting on top.
        assert abs(alarms - rate * 2e5) < 0.5 * rate * 2e5 + 5 * math.sqrt(rate * 2e5)


def test_random_directions_follow_the_beta_law() -> None:
    _, gradient = factors(0)
    space = column_space([gradient], noise_std=[0.0], summands=RANK)
    squares = space.residual(torch.randn(50_000, FEATURES, generator=torch.Generator().manual_seed(3))).square()
    assert float(squares.mean()) == pytest.approx(1 - RANK / FEATURES, abs=2e-3)


def test_members_are_accepted_and_near_misses_are_not() -> None:
    x, gradient = factors(0)
    space = column_space([gradient], noise_std=[0.0], summands=RANK)
    outside = space.complement[:, 0].float()
    near = x + 0.1 * x.norm(dim=1, keepdim=True) * outside
    assert bool(accept(space.residual(x), space.expected(x), null_cut=0.3).all())
    assert not bool(accept(space.residual(near), space.expected(near), null_cut=0.3).any())


def test_number_formats_are_read_from_the_values() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert significant_bits(values.bfloat16().float()) == 8
    assert significant_bits(values.half().float()) == 11
    assert significant_bits(values) == 24
    assert significant_bits(values.double()) == 53
