"""The residual of tokens that are not in the batch, against simulation."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.errors import SpecError
from gradleak.theory.noise import detectability as null_law

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("wanted", [100.0, 10.0])
def test_false_positives_of_the_span_check(wanted: float) -> None:
    """Beta((d − k)/2, k/2), V = 20 000, d = 192, k = 16; the count is Poisson, five standard deviations allowed."""
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        many = null_law.expected_false_positives(middle, candidates=20_000, rank=16, width=192) > wanted
        low, high = (low, middle) if many else (middle, high)
    z = torch.randn(20_000, 192, generator=torch.Generator().manual_seed(0))
    residual = (z[:, 16:].norm(dim=1) / z.norm(dim=1)).double()
    assert abs(int((residual < low).sum()) - wanted) < 5 * math.sqrt(wanted)


@pytest.mark.parametrize(
    ("rank", "residual", "digits"), [(512, 0.49, 0.01), (700, 0.20, 0.01), (748, 0.069, 0.002), (760, 0.020, 0.002)]
)
def test_margin_of_exactness(rank: int, residual: float, digits: float) -> None:
    """The published table at V = 50 257 and d = 768."""
    found = null_law.smallest_null_residual(candidates=50_257, rank=rank, width=768)
    assert found == pytest.approx(residual, abs=digits)


def test_a_full_space_accepts_everything() -> None:
    assert null_law.smallest_null_residual(candidates=10, rank=8, width=8) == 0.0
    assert null_law.expected_false_positives(0.5, candidates=10, rank=8, width=8) == 10.0
    with pytest.raises(SpecError, match="does not fit"):
        null_law.smallest_null_residual(candidates=10, rank=9, width=8)
