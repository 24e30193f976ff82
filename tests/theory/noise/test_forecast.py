"""The forecast for one gradient, against singular values and thresholds of the gradient itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradleak.core.rng import derive
from gradleak.theory.noise.forecast import NoiseForecast, forecast
from gradleak.theory.noise.token_power import TokenTest, mean_power, strengths

pytestmark = pytest.mark.oracle

TOKENS, FEATURES, COLUMNS = 6, 24, 40


def factors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = derive(seed, "forecast")
    return torch.randn(TOKENS, FEATURES, generator=rng), torch.randn(TOKENS, COLUMNS, generator=rng)


def made(*, unit: float = 0.5, noise: float = 0.0, extra: float = 0.0, seed: int = 0) -> NoiseForecast:
    x, errors = factors(seed)
    return forecast("w", x, errors, unit=unit, noise=noise, extra_std=extra, update_norm=100.0, candidates=500)


def test_share_rank_and_spectrum_are_those_of_the_gradient() -> None:
    x, errors = factors()
    singular = np.linalg.svd((x.double().T @ errors.double()).numpy(), compute_uv=False)[:TOKENS]
    found, edge = made(), 0.5 * (FEATURES * COLUMNS) ** 0.25
    assert found.rank == TOKENS and found.share == pytest.approx((singular**2).sum() / 100.0**2)
    assert found.span_all == pytest.approx(singular[0] / edge)
    assert found.span_half == pytest.approx(np.sort(singular)[TOKENS // 2 - 1] / edge)


@pytest.mark.parametrize("noise", [0.0, 3.0, 20.0])
def test_visible_directions_and_recall_are_those_at_the_noise_of_the_user(noise: float) -> None:
    x, errors = factors()
    found, std = made(noise=noise, extra=0.1), ((0.5 * noise) ** 2 + 0.1**2) ** 0.5
    singular = torch.linalg.svdvals(x.double().T @ errors.double())
    assert found.visible == int((singular > std * (FEATURES * COLUMNS) ** 0.25).sum())
    test = TokenTest(columns=COLUMNS, candidates=500)
    assert found.recall == pytest.approx(mean_power(test, strengths(x, errors), std))


def test_the_noise_at_which_half_is_found_finds_half() -> None:
    found = made()
    assert made(noise=found.token_half).recall == pytest.approx(0.5, abs=0.01)
    assert made(noise=found.token_few).recall == pytest.approx(0.05, abs=0.01)
    assert 0 < found.token_half < found.token_few


def test_levels_are_in_units_of_the_unit() -> None:
    one, other = made(unit=0.5), made(unit=2.0)
    assert one.token_half == pytest.approx(4 * other.token_half, rel=1e-6)
    assert one.span_all == pytest.approx(4 * other.span_all)


def test_a_gradient_of_nothing_has_no_directions() -> None:
    zero = forecast(
        "w", torch.zeros(2, 5), torch.zeros(2, 7), unit=1.0, noise=1.0, extra_std=0.0, update_norm=1.0, candidates=10
    )
    assert (zero.rank, zero.span_half, zero.span_all, zero.visible) == (0, 0.0, 0.0, 0)
