"""Formats are read from the number of significands, so that no factor and no storage hides them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.mechanics.subspace.number_format import bits_of_dtype, relative_rounding, significant_bits, smallest_step

pytestmark = pytest.mark.oracle

FACTORS = (1.0, 1 / 65536, 1 / 3, 0.0137, 2.5e4)
FORMATS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}


def _gradient(seed: int, rows: int = 96, columns: int = 128) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    spread = torch.randn(rows, 1, generator=rng).exp() * torch.randn(1, columns, generator=rng).exp()
    return torch.randn(rows, columns, generator=rng) * spread


@pytest.mark.contract
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_a_format_is_seen_behind_any_factor_and_in_any_storage(
    dtype: torch.dtype, factor: float, stored: torch.dtype
) -> None:
    for seed in range(3):
        scaled = _gradient(seed).to(dtype).to(stored) * factor
        assert significant_bits(scaled) == FORMATS[dtype]


@pytest.mark.contract
def test_float64_holds_no_more_than_its_own_computation_left() -> None:
    assert significant_bits(_gradient(0).double()) == 24
    assert significant_bits((_gradient(0).double() + _gradient(1).double()) / 2) == 24


@pytest.mark.contract
def test_what_bears_several_roundings_is_no_single_format() -> None:
    one, other = _gradient(0).bfloat16().float(), _gradient(1).bfloat16().float()
    assert significant_bits((one + other) / 3) == 24


@pytest.mark.contract
def test_a_small_tensor_is_told_at_powers_of_two_only() -> None:
    few = _gradient(0, 4, 8).bfloat16().float()
    assert significant_bits(few / 1024) == 8
    assert significant_bits(few / 3) == 24


@pytest.mark.contract
def test_a_grid_of_levels_is_no_format() -> None:
    levels = torch.randint(-127, 128, (64, 64), generator=torch.Generator().manual_seed(0)).float()
    assert significant_bits(levels * 0.0137) == 24
    assert significant_bits(_gradient(0).sign() * 0.0137) == 24


@pytest.mark.contract
def test_the_step_of_subnormal_numbers_keeps_its_factor() -> None:
    tiny = (_gradient(0) * 2e-7).half().float()
    assert smallest_step(tiny) == 2.0**-24
    assert smallest_step(tiny / 3) == pytest.approx(2.0**-24 / 3, rel=1e-6)
    assert smallest_step(_gradient(0).half().float() / 3) == 0.0


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24)])
def test_one_rounding_is_as_large_as_the_constant_says(dtype: torch.dtype, bits: int) -> None:
    """Normal entries are within half a percent of the law at every scale; 400,000 of them have a standard error of .1 %."""
    assert bits_of_dtype(dtype) == bits
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    error = (x.to(dtype).double() - x).square().mean().sqrt() / x.square().mean().sqrt()
    assert float(error) == pytest.approx(relative_rounding(bits), rel=0.01)
