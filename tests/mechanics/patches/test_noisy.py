"""The alternation's two steps against the Gaussian posterior written out, and its gain on rounded gradients."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.patches.closed_form import solve_patches
from gradleak.mechanics.patches.errors import entry_variance
from gradleak.mechanics.patches.noisy import Noisy, estimate_patches
from gradleak.mechanics.patches.prior import PicturePrior

pytestmark = pytest.mark.oracle

PRIOR = PicturePrior(shape=(1, 4, 2), length=2.0)
PATCH = (2, 2)


@pytest.mark.oracle
def test_without_refitting_it_is_the_posterior_mean() -> None:
    """Two patches of four pixels. The prior is block diagonal in the basis only, so that is what is written out."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    gradient = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    mean = torch.full((4,), 0.3, dtype=torch.float64)
    basis, covariances = PRIOR.components(PATCH)
    big = torch.zeros(8, 8, dtype=torch.float64)
    for j in range(4):
        for p in range(2):
            for q in range(2):
                big[4 * p : 4 * p + 4, 4 * q : 4 * q + 4] += covariances[j, p, q] * torch.outer(
                    basis[:, j], basis[:, j]
                )
    design = torch.kron(rows.T.contiguous(), torch.eye(4, dtype=torch.float64))
    precision = torch.linalg.inv(big) + design.T @ design / 0.04
    center = mean.repeat(2)
    wanted = center + torch.linalg.solve(precision, design.T @ (gradient.flatten() - design @ center) / 0.04)
    found = estimate_patches(
        Noisy(value=rows, variance=torch.ones_like(rows)),
        Noisy(value=gradient, variance=torch.full_like(gradient, 0.04)),
        None,
        prior=PRIOR,
        patch=PATCH,
        mean=mean,
        rounds=0,
    )
    assert torch.allclose(found.patches.flatten(), wanted, atol=1e-9)
    assert abs(found.deviation**2 - float(torch.linalg.inv(precision).diagonal().mean())) < 1e-9


@pytest.mark.contract
def test_beats_the_plain_solution_on_rounded_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    truth = PRIOR.mean + PRIOR.colored(torch.randn(1, 1, 4, 2, generator=rng, dtype=torch.float64))
    patches = torch.nn.functional.unfold(truth, PATCH, stride=PATCH)[0].T
    # Rows that are nearly equal, as those of a real table are.
    rows = torch.randn(1, 60, generator=rng, dtype=torch.float64) + 0.01 * torch.randn(
        2, 60, generator=rng, dtype=torch.float64
    )
    gradient = (rows.T @ patches).bfloat16().float()
    rows = rows.bfloat16().float()
    plain = solve_patches(rows, gradient).patches
    found = estimate_patches(
        Noisy(value=rows.double(), variance=entry_variance(rows)),
        Noisy(value=gradient.double(), variance=entry_variance(gradient)),
        None,
        prior=PRIOR,
        patch=PATCH,
        mean=torch.full((4,), PRIOR.mean, dtype=torch.float64),
        rounds=5,
    )
    off = [(each - patches).square().mean().sqrt() for each in (plain, found.patches)]
    assert off[1] < 0.7 * off[0]
    assert off[1] < 3 * found.deviation


@pytest.mark.contract
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_has_the_variance_that_is_claimed(dtype: torch.dtype) -> None:
    """20,000 entries over six decades: the mean ratio of squares to claims within 5 % (one standard deviation is 0.7 %)."""
    rng = torch.Generator().manual_seed(0)
    exact = torch.randn(20_000, generator=rng) * 10.0 ** (-6 * torch.rand(20_000, generator=rng))
    rounded = exact.to(dtype).float()
    claimed = entry_variance(rounded)
    kept = rounded.abs() > 1e-3 * rounded.abs().max()
    ratio = ((rounded - exact).double().square() / claimed)[kept].mean()
    assert abs(float(ratio) - 1) < 0.05


@pytest.mark.contract
def test_levels_of_a_quantizer_are_seen() -> None:
    exact = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    step = float(exact.abs().max()) / 127
    rounded = (exact / step).round() * step
    assert abs(float(entry_variance(rounded).mean()) / (step**2 / 12) - 1) < 0.01
