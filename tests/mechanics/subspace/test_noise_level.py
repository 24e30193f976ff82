"""Number formats are read from the values, and their rounding counts as noise."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.subspace.noise_level import noise_in, noise_scales, rounding_std, whiten
from gradleak.mechanics.subspace.number_format import significant_bits
from gradleak.mechanics.subspace.subspace import column_space

pytestmark = pytest.mark.oracle

FEATURES, OUTPUTS, RANK = 64, 192, 12


def factors(seed: int, *, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rank, FEATURES, generator=rng)
    d = torch.randn(rank, OUTPUTS, generator=rng)
    return x, x.T @ d


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


def test_number_formats_are_read_from_the_values() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert significant_bits(values.bfloat16().float()) == 8
    assert significant_bits(values.half().float()) == 11
    assert significant_bits(values) == 24
    assert significant_bits(values.double()) == 24


@pytest.mark.parametrize("levels", [7, 127])
def test_the_noise_of_a_quantizer_is_its_error(levels: int) -> None:
    """Rounding to equidistant levels, read off the rounded entries alone, against the error that was made."""
    exact = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    step = float(exact.abs().max()) / levels
    rounded = (exact / step).round() * step
    error = float((rounded - exact).double().square().mean().sqrt())
    assert rounding_std(rounded) == pytest.approx(error, rel=0.03)
    assert rounding_std(exact) == 0.0, "no levels, no rounding"


def test_two_values_are_no_levels() -> None:
    assert rounding_std(torch.tensor([0.0, 1.0, 1.0])) == 0.0


@pytest.mark.parametrize("shape", [(80, 240), (240, 80)])
def test_white_noise_is_read_from_under_a_matrix_of_low_rank(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(1)
    low_rank = 30 * torch.randn(shape[0], 5, generator=rng) @ torch.randn(5, shape[1], generator=rng)
    noise = 0.7 * torch.randn(*shape, generator=rng)
    assert noise_in(low_rank + noise) == pytest.approx(0.7, rel=0.03)


def test_scales_of_rows_and_columns_come_back() -> None:
    rng = torch.Generator().manual_seed(2)
    a, b = (torch.rand(n, generator=rng).double() + 0.2 for n in (30, 50))
    rows, columns = noise_scales(a.unsqueeze(1) * b)
    torch.testing.assert_close(rows.unsqueeze(1) * columns, a.unsqueeze(1) * b)
    assert float(rows.square().mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("announced", [0.02, 3.0])
def test_announced_noise_has_size_one_afterwards(announced: float) -> None:
    noise = announced * torch.randn(64, 400, generator=torch.Generator().manual_seed(3))
    white = whiten([noise], [announced])
    assert float(white.columns.std()) == pytest.approx(1.0, rel=0.02)
    assert white.rows is None and white.known == pytest.approx(1.0)


def test_noise_of_every_feature_has_size_one_afterwards() -> None:
    rng = torch.Generator().manual_seed(4)
    by_feature = torch.rand(64, generator=rng) + 0.1
    white = whiten([by_feature.unsqueeze(1) * torch.randn(64, 2000, generator=rng)], [by_feature])
    torch.testing.assert_close(white.columns.std(dim=1), torch.ones(64, dtype=torch.float64), rtol=0.08, atol=0)
    torch.testing.assert_close(white.features / white.columns, white.rows.unsqueeze(1).expand_as(white.columns))


@pytest.mark.contract
def test_gradients_of_unlike_formats_side_by_side_have_units() -> None:
    rng = torch.Generator().manual_seed(0)
    short, whole = torch.randn(24, 40, generator=rng).bfloat16().float(), torch.randn(24, 40, generator=rng)
    white = whiten([short, whole], [0.0, 0.0])
    assert white.rows is not None
    assert bool(torch.isfinite(white.columns).all() and torch.isfinite(white.rows).all())
