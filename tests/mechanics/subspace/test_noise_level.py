"""Number formats are read from the values, and their rounding counts as noise."""

from __future__ import annotations

import pytest
import torch

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
