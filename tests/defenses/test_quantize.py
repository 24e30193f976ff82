"""Each ``Guarantees`` bullet of ``quantize``."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.update import Update
from gradleak.defenses.quantize import Quantize

pytestmark = pytest.mark.contract

RNG = torch.Generator()
GAUSSIAN = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
LOG_UNIFORM = torch.exp2(6.0 * torch.rand(100_000, generator=torch.Generator().manual_seed(1)))


def released(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    return Quantize(dtype=dtype).apply(Update({"a": tensor}), RNG)["a"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("dtype", "bits"), [("bf16", 8), ("fp16", 11)])
def test_relative_error_of_short_floats(dtype: str, bits: int) -> None:
    values = GAUSSIAN[GAUSSIAN.abs() > 1e-3]
    assert bool(((released(values, dtype) - values).abs() <= 2.0**-bits * values.abs()).all())


def test_int8_is_rounding_to_255_levels() -> None:
    found = released(GAUSSIAN, "int8")
    step = GAUSSIAN.abs().max() / 127
    torch.testing.assert_close(found / step, (found / step).round())
    assert bool(((found - GAUSSIAN).abs() <= step / 2 * (1 + 1e-5)).all())
    assert found.unique().numel() <= 255
    torch.testing.assert_close(found.abs().max(), GAUSSIAN.abs().max())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
@pytest.mark.parametrize("values", [GAUSSIAN, LOG_UNIFORM], ids=["gaussian", "log-uniform"])
def test_noise_std_is_the_spread_of_the_error(dtype: str, values: torch.Tensor) -> None:
    found = released(values, dtype)
    error = float((found - values).double().square().mean().sqrt())
    assert Quantize(dtype=dtype).noise_std(found) == pytest.approx(error, rel=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_zero_stays_zero_and_again_changes_nothing(dtype: str) -> None:
    assert torch.equal(released(torch.zeros(5), dtype), torch.zeros(5))
    once = released(GAUSSIAN, dtype)
    torch.testing.assert_close(released(once, dtype), once, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
def test_fp16_saturates(given: torch.dtype) -> None:
    found = released(torch.tensor([1e6, -1e6, 1.0], dtype=given), "fp16")
    assert found.dtype == given
    assert found.tolist() == torch.tensor([65504.0, -65504.0, 1.0], dtype=given).tolist()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
@pytest.mark.parametrize("size", [torch.finfo(torch.float32).max, 1e-44])
def test_extreme_sizes_stay_finite(dtype: str, size: float) -> None:
    assert bool(torch.isfinite(released(torch.tensor([size, -size / 2, 0.0]), dtype)).all())


def test_an_update_in_the_format_is_not_changed() -> None:
    half = GAUSSIAN.bfloat16()
    assert torch.equal(released(half, "bf16"), half)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_claims_nothing(dtype: str) -> None:
    stage = Quantize(dtype=dtype)  # type: ignore[arg-type]
    assert not stage.preserves_norm_bound() and stage.norm_bound() is None and stage.gaussian_multiplier() is None


def test_rounding_can_lengthen() -> None:
    """Why an earlier bound is not kept: just above half-way between two bf16 numbers, every entry is rounded up."""
    u = Update({"a": torch.full((100,), 1.0 + 2.0**-8 + 2.0**-12)})
    assert Quantize(dtype="bf16").apply(u, RNG).norm() > u.norm()
