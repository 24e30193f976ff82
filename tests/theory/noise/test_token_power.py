"""The power of the token test at its ends, and the strengths under it."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.errors import SpecError
from gradleak.theory.noise import token_power as token_test
from gradleak.theory.noise.token_power import TokenTest

pytestmark = pytest.mark.oracle


def test_strength_at_one_half() -> None:
    """λ₅₀ = 201.7 at m = 768 and 50 257 candidates: 3.8 times better than the spectral threshold in σ²."""
    found = TokenTest(columns=768, candidates=50_257).strength_for(0.5)
    assert found == pytest.approx(201.7, abs=0.1)
    assert 768 / found == pytest.approx(3.8, abs=0.02)


def test_power_at_the_ends() -> None:
    test = TokenTest(columns=64, candidates=1000)
    assert test.power(0.0) == pytest.approx(0.05 / 1000, rel=1e-6)
    assert test.power(1e9) == 1.0
    grid = [test.power(x) for x in (10.0, 50.0, 100.0, 400.0, 2000.0, 2500.0)]
    assert grid == sorted(grid)
    with pytest.raises(SpecError, match="power"):
        test.strength_for(1e-9)
    with pytest.raises(SpecError, match="columns"):
        TokenTest(columns=0, candidates=5)


def test_strengths_are_what_projection_leaves() -> None:
    rng = torch.Generator().manual_seed(0)
    x, d = torch.randn(5, 12, generator=rng).double(), torch.randn(5, 7, generator=rng).double()
    for i, found in enumerate(token_test.strengths(x, d)):
        others = torch.linalg.qr(x[[j for j in range(5) if j != i]].T).Q
        perp = x[i] - others @ (others.T @ x[i])
        assert float(found) == pytest.approx(float(perp.square().sum() * d[i].square().sum()), rel=1e-9)


def test_a_dependent_token_has_no_strength_of_its_own() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 12, generator=rng).double()
    x[3] = x[0] + x[1]
    found = token_test.strengths(x, torch.randn(4, 7, generator=rng).double())
    assert (found > 0).tolist() == [False, False, True, False]


def test_recall_falls_through_the_level_it_dies_at() -> None:
    test, strength = TokenTest(columns=32, candidates=500), torch.tensor([100.0, 900.0, 2500.0])
    for level in (0.5, 0.05):
        at = token_test.dies_at(test, strength, recall=level)
        assert token_test.mean_power(test, strength, at) == pytest.approx(level, abs=1e-3)
    assert token_test.dies_at(test, torch.tensor([0.0, 0.0, 1.0])) == 0.0
