"""Laplace noise: the derived lemma by quadrature, and composition against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradleak.privacy.accounting import laplace
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.plan.plan import Phase
from gradleak.privacy.plan.views import Release

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(("total", "share"), [(1.0, 0.5), (2.0, 0.1), (3.0, 0.4)])
def test_one_axis_is_the_worst_way_to_move(total: float, share: float) -> None:
    x = np.linspace(-14, 14 + total, 1701)
    cell = (x[1] - x[0]) ** 2
    v = (share * total, (1 - share) * total)
    log_rest = np.abs(x)[:, None] + np.abs(x)[None, :]
    log_moved = np.abs(x - v[0])[:, None] + np.abs(x - v[1])[None, :]
    for epsilon in np.linspace(0.0, 0.95 * total, 6):
        split = float(np.maximum(np.exp(-log_moved) - math.exp(epsilon) * np.exp(-log_rest), 0.0).sum()) / 4 * cell
        assert split <= 1 - math.exp((epsilon - total) / 2) + 1e-3


def test_known_participations_against_all_coins() -> None:
    """Three steps, each seen with its coin: the mean over the coins of the composition's δ is below the plan's at the printed ε."""
    table = {
        "mechanism": "laplace",
        "noise_multiplier": 1.5,
        "steps": 3,
        "sampling": "poisson",
        "sampling_rate": 0.2,
        "sampled": "clients",
        "clip": "update",
        "view": "server_sees_each_update",
        "delta": 0.05,
    }
    epsilon = account(make_plan(table)).epsilon
    assert 0 < epsilon < 3 / 1.5
    rng = np.random.default_rng(0)
    noise = 1.5 * rng.laplace(size=(400_000, 3))
    coins = rng.random((400_000, 3)) < 0.2
    # Released: noise + coin; the loss against the world in which nothing was sent.
    losses = ((np.abs(noise + coins) - np.abs(noise)) / 1.5).sum(1)
    delta = np.maximum(0.0, -np.expm1(epsilon - losses)).mean()
    # Standard error below 3e-4.
    assert delta <= 0.05 + 1e-3


def test_the_pure_epsilon_adds_up_by_lengths() -> None:
    phases = (Phase(noise_multiplier=2.0, steps=3), Phase(noise_multiplier=4.0, steps=4))
    release = Release(mechanism="laplace", phases=phases, law="full", distance=2.0)
    assert laplace.pure_epsilon(release) == pytest.approx(2 * (3 / 2 + 4 / 4))


def test_many_releases_against_the_law_of_their_sum() -> None:
    """20 releases, δ at the printed ε by simulation: at most the plan's, and not far below."""
    epsilon = account(make_plan({"mechanism": "laplace", "noise_multiplier": 4.0, "steps": 20, "delta": 0.02})).epsilon
    rng = np.random.default_rng(1)
    noise = rng.laplace(size=(300_000, 20))
    losses = (np.abs(noise + 0.25) - np.abs(noise)).sum(1)
    delta = np.maximum(0.0, -np.expm1(epsilon - losses)).mean()
    assert delta == pytest.approx(0.02, abs=5 * 0.1 / math.sqrt(300_000))
