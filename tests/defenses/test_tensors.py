"""Arithmetic that defenses share, each against plain Python."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradleak.core.errors import SpecError
from gradleak.defenses._tensors import (
    add_noise,
    finite_and_not_negative,
    keep_largest,
    kept_count,
    on_support,
    require,
    rms,
    smooth_sign,
    working_dtype,
)

pytestmark = pytest.mark.property

numbers = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


@given(numbers, st.integers(0, 12))
def test_the_largest_are_kept_and_the_earlier_of_equals(values: list[int], kept: int) -> None:
    magnitudes = torch.tensor(values, dtype=torch.float32).abs()
    best = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:kept]
    assert keep_largest(magnitudes, kept).nonzero().flatten().tolist() == sorted(best)


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_a_fraction_is_read_as_the_decimal_that_was_written(entries: int, thousandths: int) -> None:
    assert kept_count(entries, thousandths / 1000) == math.ceil((1 - Fraction(thousandths, 1000)) * entries)


def test_ninety_nine_percent_of_a_hundred_leave_one() -> None:
    assert kept_count(100, 0.99) == 1 and kept_count(1000, 0.999) == 1


@given(numbers)
def test_root_mean_square(values: list[int]) -> None:
    assert rms(torch.tensor(values, dtype=torch.float32)) == pytest.approx(
        math.sqrt(sum(v * v for v in values) / len(values))
    )


@given(
    st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=8),
    st.floats(0.05, 2.0),
    st.sampled_from([1e-20, 1.0, 1e15]),
)
def test_the_smooth_sign_is_its_formula_at_every_scale(values: list[float], width: float, scale: float) -> None:
    kept = [v for v in values if abs(v) > 1e-3] + [0.0]
    tensor = torch.tensor([kept], dtype=torch.float64)
    size = math.sqrt(sum(v * v for v in kept) / max(1, sum(v != 0 for v in kept)))
    wanted = [v / math.sqrt(v * v + (width * size) ** 2) if v else 0.0 for v in kept]
    assert smooth_sign(tensor * scale, width)[0].tolist() == pytest.approx(wanted, abs=1e-9)


def test_the_smooth_sign_of_nothing_has_a_finite_slope() -> None:
    zeros = torch.zeros(2, 3, requires_grad=True)
    smooth_sign(zeros, 0.1).sum().backward()
    assert zeros.grad is not None and bool(zeros.grad.isfinite().all())


def test_noise_is_rounded_once() -> None:
    seen: list[torch.dtype] = []

    def draw(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        seen.append(dtype)
        return torch.full(shape, 2.0**-9, dtype=dtype)

    made = add_noise(torch.ones(3, dtype=torch.bfloat16), draw)
    assert made.dtype is torch.bfloat16 and seen == [torch.float32]
    assert working_dtype(torch.ones(1, dtype=torch.float64)) is torch.float64


def test_zeros_of_the_release_are_zeros_of_every_candidate() -> None:
    shown = on_support({"a": torch.ones(2, 3)}, {"a": torch.tensor([1.0, 0.0, -2.0])})
    assert shown["a"].tolist() == [[1.0, 0.0, 1.0]] * 2


def test_one_wording_for_every_argument_out_of_range() -> None:
    require(True, "x", "y", 1, "small")
    with pytest.raises(SpecError, match=r"x: y=1 is out of range\. y must be small\."):
        require(False, "x", "y", 1, "small")
    assert [finite_and_not_negative(v) for v in (0.0, 1.0, -1.0, math.inf, math.nan)] == [
        True,
        True,
        False,
        False,
        False,
    ]
