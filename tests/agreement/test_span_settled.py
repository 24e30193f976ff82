"""The test that settles proposed tokens: its power is the predicted one, and it does not answer for what is missing."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.span.likelihood.energy_test import _chance
from gradleak.theory.noise.token_power import TokenTest, mean_power, strengths

TOKENS, FEATURES, COLUMNS, TRIALS = 20, 64, 192, 12
RATE = 1e-3


def world(noise: float, trial: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = derive(trial, "settled")
    x = torch.randn(TOKENS, FEATURES, generator=rng, dtype=torch.float64)
    errors = torch.randn(TOKENS, COLUMNS, generator=rng, dtype=torch.float64)
    errors *= torch.rand(TOKENS, 1, generator=rng, dtype=torch.float64).mul(2).exp()
    z = torch.randn(FEATURES, COLUMNS, generator=rng, dtype=torch.float64)
    return x, errors, x.T @ errors / noise + z


@pytest.mark.parametrize("noise", [6.0, 12.0, 24.0])
def test_measured_recall_is_predicted_recall(noise: float) -> None:
    test = TokenTest(columns=COLUMNS, candidates=1, false_alarms=RATE)
    found = predicted = 0.0
    for trial in range(TRIALS):
        x, errors, gradient = world(noise, trial)
        chance, strange = _chance(x, gradient)
        assert strange == 0
        found += float((chance < RATE).double().mean()) / TRIALS
        predicted += mean_power(test, strengths(x, errors), noise) / TRIALS
    # 240 tokens: two standard deviations of a share are below .065; at these levels it is nearer to .05.
    assert abs(found - predicted) < 0.065


def test_strangers_are_settled_at_the_stated_rate() -> None:
    false = 0
    for trial in range(TRIALS):
        x, _, gradient = world(6.0, trial)
        strangers = torch.randn(30, FEATURES, generator=derive(trial, "strangers"), dtype=torch.float64)
        chance, _ = _chance(torch.cat((x, strangers)), gradient)
        false += int((chance[TOKENS:] < 0.05).sum())
    # 360 tests at 5 %: 18 expected; more than 33 with probability below 1e-3.
    assert false <= 33


def test_a_missing_token_is_counted_as_unexplained() -> None:
    x, _, gradient = world(0.1, 0)
    _, strange = _chance(x[3:], gradient)
    assert strange == 3
