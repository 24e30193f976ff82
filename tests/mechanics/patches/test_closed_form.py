"""X = (Δᵀ)⁺ G against sums of outer products; a row offset shows in the certificate."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.patches.closed_form import position_rows, solve_patches

pytestmark = pytest.mark.oracle


def problem(patches: int = 6, width: int = 20, features: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(patches, width, generator=rng, dtype=torch.float64)
    truth = torch.rand(patches, features, generator=rng, dtype=torch.float64)
    gradient = torch.zeros(width, features, dtype=torch.float64)
    for row, patch in zip(rows, truth, strict=True):
        gradient += torch.outer(row, patch)
    return rows, truth, gradient


@pytest.mark.oracle
def test_recovers_the_factors_of_a_sum_of_outer_products() -> None:
    rows, truth, gradient = problem()
    found = solve_patches(rows, gradient)
    assert torch.allclose(found.patches, truth, atol=1e-12) and found.certificate < 1e-12


@pytest.mark.contract
def test_one_row_off_shows_in_the_certificate() -> None:
    rows, _, gradient = problem()
    assert solve_patches(rows.roll(1, 1), gradient).certificate > 1e-2
    assert solve_patches(rows[1:], gradient).certificate > 1e-2


@pytest.mark.contract
def test_the_standard_error_is_that_of_the_patches() -> None:
    """400 draws of noise: the mean square error within 10 %, four standard deviations of 72 · 400 squares being 4 %."""
    rows, truth, gradient = problem()
    rng = torch.Generator().manual_seed(1)
    squares, claims = [], []
    for _ in range(400):
        found = solve_patches(rows, gradient + 0.01 * torch.randn(gradient.shape, generator=rng, dtype=torch.float64))
        squares.append((found.patches - truth).square().mean())
        claims.append(found.standard_error**2)
    assert abs(float(torch.stack(squares).mean()) / (sum(claims) / len(claims)) - 1) < 0.1


@pytest.mark.contract
def test_more_patches_than_width_leave_no_error_to_estimate() -> None:
    rows, _, gradient = problem(patches=20, width=20)
    assert solve_patches(rows, gradient).standard_error == float("inf")


@pytest.mark.oracle
def test_interpolated_rows_are_undone() -> None:
    rows, _, _ = problem()
    mixing = torch.rand(9, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    stored = torch.cat([torch.ones(1, 20, dtype=torch.float64), mixing @ rows])
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.float64), mixing])
    found = position_rows(stored.unsqueeze(0), padded)
    assert found is not None and torch.allclose(found, rows, atol=1e-10)


@pytest.mark.contract
def test_a_table_stretched_from_fewer_rows_tells_nothing() -> None:
    mixing = torch.rand(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert position_rows(torch.zeros(4, 20), mixing) is None
