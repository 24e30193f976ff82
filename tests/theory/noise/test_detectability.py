"""Directions above the edge of the noise, against simulation and published values."""

from __future__ import annotations

import pytest
import torch

from gradleak.theory.noise import detectability

pytestmark = pytest.mark.oracle


def spiked(rows: int, columns: int, singular: float, seed: int) -> tuple[float, float, float]:
    """Largest singular value of signal plus unit noise, and squared cosines of its vectors with the true ones."""
    rng = torch.Generator().manual_seed(seed)
    u, v = torch.randn(rows, generator=rng), torch.randn(columns, generator=rng)
    u, v = u / u.norm(), v / v.norm()
    noisy = singular * torch.outer(u, v) + torch.randn(rows, columns, generator=rng)
    if rows > columns:
        u, v, noisy = v, u, noisy.T
    left = torch.linalg.eigh(noisy @ noisy.T)[1][:, -1]
    right = left @ noisy
    cosines = float((left @ u) ** 2), float((right @ v) ** 2 / right.square().sum())
    return float(right.norm()), *(cosines if rows <= columns else cosines[::-1])


@pytest.mark.parametrize(("rows", "columns"), [(256, 256), (256, 768), (768, 256)])
@pytest.mark.parametrize("times", [1.3, 2.0])
def test_a_visible_direction_appears_where_it_should(rows: int, columns: int, times: float) -> None:
    """F2: λ and cos² within 3 % (points, for cos²). At 1.3× a cosine varies by .06 per draw, the mean of 40 by .010."""
    singular = times * detectability.threshold(1.0, rows, columns)
    law = detectability.spike(singular, 1.0, rows, columns)
    draws = torch.tensor([spiked(rows, columns, singular, seed) for seed in range(40)])
    value, left, right = draws.mean(0).tolist()
    assert law.visible
    assert value == pytest.approx(law.singular, rel=0.03)
    assert left == pytest.approx(law.cosine_left, abs=0.03)
    assert right == pytest.approx(law.cosine_right, abs=0.03)


def test_published_values_of_the_spike() -> None:
    found = detectability.spike(1.3 * 16.0, 1.0, 256, 256)
    assert (found.singular, found.cosine_left) == (pytest.approx(33.11, abs=0.01), pytest.approx(0.408, abs=5e-4))
    tall = detectability.spike(1.3 * detectability.threshold(1.0, 256, 768), 1.0, 256, 768)
    assert (tall.cosine_left, tall.cosine_right) == (pytest.approx(0.484, abs=5e-4), pytest.approx(0.321, abs=5e-4))


def test_below_the_threshold_nothing_is_seen() -> None:
    singular = 0.7 * detectability.threshold(1.0, 256, 256)
    assert not detectability.spike(singular, 1.0, 256, 256).visible
    assert max(spiked(256, 256, singular, seed)[1] for seed in range(4)) < 0.05
