"""Noise on a table: its size, the rows that stand out of it, and no answer where the background is something else."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.embeddings.support import row_noise, rows_above, token_support
from gradleak.theory.noise.token_power import TokenTest

pytestmark = pytest.mark.oracle

WIDTH, ROWS, USED, RATE = 48, 600, 60, 0.05


def table(strength: float, seed: int, *, std: float = 0.3) -> torch.Tensor:
    """White noise of size ``std``; the first rows hold signals of ‖δ‖² = strength · std²."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(ROWS, WIDTH, generator=rng)
    signal = torch.nn.functional.normalize(torch.randn(USED, WIDTH, generator=rng), dim=1)
    rows[:USED] += strength**0.5 * signal
    return std * rows


@pytest.mark.parametrize("strength", [35.0, 50.0, 70.0])
def test_share_of_rows_found_is_the_predicted_one(strength: float) -> None:
    """1,200 rows of one strength: the standard error is at most .015."""
    test = TokenTest(columns=WIDTH, candidates=ROWS, false_alarms=RATE)
    found = false = 0
    for seed in range(20):
        energy = table(strength, seed).square().sum(1)
        noise = row_noise(energy, WIDTH, false_alarms=RATE)
        assert noise is not None
        assert noise == pytest.approx(0.3, rel=0.03)
        above = rows_above(energy, WIDTH, noise=noise, false_alarms=RATE)
        found += int(above[:USED].sum())
        false += int(above[USED:].any())
    assert 0.05 < test.power(strength) < 0.95
    assert found / (20 * USED) == pytest.approx(test.power(strength), abs=0.05)
    # 20 tables at 5 %: more than five alarms with probability below 1e-3.
    assert false <= 5


@pytest.mark.parametrize("seed", range(5))
def test_a_background_of_uneven_rows_is_no_noise(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(ROWS, WIDTH, generator=rng) * torch.rand(ROWS, 1, generator=rng).add(0.5)
    assert row_noise(rows.square().sum(1), WIDTH, false_alarms=RATE) is None
    assert not token_support(rows).reliable


def test_rows_that_are_used_hide_the_noise_where_they_are_most() -> None:
    rows = table(1e4, 0)[: USED + 20]
    assert row_noise(rows.square().sum(1), WIDTH, false_alarms=RATE) is None
