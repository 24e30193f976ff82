"""The column space from few random sums of outputs, from a Gram matrix and from a range finder."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.mechanics.subspace.spectrum import (
    from_gram,
    from_range,
    from_sums,
    noise_edge,
    room,
    unevenness,
)

pytestmark = pytest.mark.oracle

FEATURES, OUTPUTS = 256, 768


def noisy(rank: int, signal: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unit length, and a gradient that holds them under white noise of size one, ``signal`` times its edge."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(rank, FEATURES, generator=rng, dtype=torch.float64), dim=1)
    errors = torch.nn.functional.normalize(torch.randn(rank, OUTPUTS, generator=rng, dtype=torch.float64), dim=1)
    size = signal * (math.sqrt(FEATURES) + math.sqrt(OUTPUTS))
    return x, size * x.T @ errors + torch.randn(FEATURES, OUTPUTS, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(("rank", "columns"), [(12, 32), (40, 107), (80, 107)])
def test_few_sums_of_outputs_tilt_a_space_as_much_as_theory_says(rank: int, columns: int) -> None:
    """What a member shows outside the space agrees with the first order of noise in the sums, however full they are."""
    ratios, noises = [], []
    for seed in range(5):
        x, gradient = noisy(rank, 1e4, seed)
        found = from_sums(gradient, columns, spread=1.0)
        assert found is not None
        assert found.basis.shape[1] == rank
        left = (x - (x @ found.basis) @ found.basis.T).norm(dim=1)
        tilt = ((x @ found.basis) / found.singular).norm(dim=1) * found.noise * math.sqrt(FEATURES - rank)
        assert float(left.max()) < 1.5 * found.worst
        ratios.append(left / tilt)
        noises.append(found.noise)
    assert float(torch.cat(ratios).mean()) == pytest.approx(1.0, abs=0.05)
    assert sum(noises) / len(noises) == pytest.approx(1.0, abs=0.05)


def test_a_space_that_fills_the_sums_is_left_to_all_outputs() -> None:
    _, gradient = noisy(room(32) + 1, 1e4, 0)
    assert from_sums(gradient, 32, spread=1.0) is None
    assert from_gram(gradient, spread=1.0).basis.shape[1] == room(32) + 1


def test_range_finder_and_gram_matrix_agree() -> None:
    """Directions twenty times as strong as noise can be: members show the same residual in both spaces, that of all outputs."""
    x, gradient = noisy(20, 20.0, 0)
    one, other = from_range(gradient, 52, spread=1.0), from_gram(gradient, spread=1.0)
    assert one is not None
    assert one.basis.shape == other.basis.shape == (FEATURES, 20)
    assert torch.allclose(one.singular, other.singular, rtol=1e-3)
    assert one.noise == pytest.approx(other.noise, rel=0.05)
    residuals = [(x - (x @ each.basis) @ each.basis.T).norm(dim=1) for each in (one, other)]
    assert float(residuals[0].mean()) == pytest.approx(float(residuals[1].mean()), rel=0.02)


def test_a_weak_direction_is_kept_beside_strong_ones_and_the_floor_is_not() -> None:
    """The largest ratio of neighbors lies above the weak direction, which stands three times above a floor of unknown size."""
    rng = torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(FEATURES, 12, generator=rng, dtype=torch.float64)).Q
    errors = torch.linalg.qr(torch.randn(OUTPUTS, 12, generator=rng, dtype=torch.float64)).Q
    edge = math.sqrt(FEATURES) + math.sqrt(OUTPUTS)
    sizes = torch.full((12,), 1e5, dtype=torch.float64)
    sizes[-1] = 3 * 20 * edge
    floor = 20 * torch.randn(FEATURES, OUTPUTS, generator=rng, dtype=torch.float64)
    assert from_gram(x @ (sizes.unsqueeze(1) * errors.T) + floor, spread=200.0).basis.shape[1] == 12


@pytest.mark.parametrize("outputs", [256, 512, 1024])
@pytest.mark.parametrize("uneven", [False, True])
def test_a_floor_alone_adds_no_direction(outputs: int, uneven: bool) -> None:
    """Forty floors of a size that nobody announced, with rows alike or of sizes that differ as those of a rank-one gradient do: at 1e-6 each,
    one that is taken for a direction is expected in 25,000 runs of this test."""
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        x = torch.linalg.qr(torch.randn(FEATURES, 8, generator=rng, dtype=torch.float64)).Q
        errors = torch.linalg.qr(torch.randn(outputs, 8, generator=rng, dtype=torch.float64)).Q
        floor = torch.randn(FEATURES, outputs, generator=rng, dtype=torch.float64)
        if uneven:
            floor *= torch.randn(FEATURES, 1, generator=rng, dtype=torch.float64)
        assert from_gram(1e7 * x @ errors.T + 5 * floor, spread=200.0).basis.shape[1] == 8


@pytest.mark.parametrize("outputs", [256, 1024])
def test_the_edge_of_uneven_noise_is_where_its_largest_singular_value_lies(outputs: int) -> None:
    """Five draws under rows with a few that are three times as large; the law is that of ever larger matrices."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(FEATURES, 1, generator=rng, dtype=torch.float64)
    draws = [rows * torch.randn(FEATURES, outputs, generator=rng, dtype=torch.float64) for _ in range(5)]
    size = rows.square().mean().sqrt() * noise_edge(FEATURES, outputs)
    measured = sum(float(torch.linalg.svdvals(noise)[0] / size) for noise in draws) / len(draws)
    assert measured > 1.5
    assert unevenness(rows.flatten().square(), outputs) == pytest.approx(measured, rel=0.06)
