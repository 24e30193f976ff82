"""The law of strangers holds its rate; members are accepted and near misses are not."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.mechanics.subspace.null_laws import LogNull, accept, fit_null, log_odds
from gradleak.mechanics.subspace.subspace import column_space

pytestmark = pytest.mark.oracle

FEATURES, OUTPUTS, RANK = 64, 192, 12


def factors(seed: int, *, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rank, FEATURES, generator=rng)
    d = torch.randn(rank, OUTPUTS, generator=rng)
    return x, x.T @ d


def test_the_null_law_controls_false_alarms() -> None:
    _, gradient = factors(0)
    space = column_space([gradient], noise_std=[0.0], summands=RANK)
    rng = torch.Generator().manual_seed(2)
    fitted = fit_null(space.residual(torch.randn(1000, FEATURES, generator=rng)))
    fresh = space.residual(torch.randn(200_000, FEATURES, generator=rng))
    for rate in (1e-1, 1e-2, 1e-3):
        alarms = int((fresh < fitted.cut(rate)).sum())
        # Fitted on 1000 points: the tail is known to about half; five standard deviations of counting on top.
        assert abs(alarms - rate * 2e5) < 0.5 * rate * 2e5 + 5 * math.sqrt(rate * 2e5)


def test_members_are_accepted_and_near_misses_are_not() -> None:
    x, gradient = factors(0)
    space = column_space([gradient], noise_std=[0.0], summands=RANK)
    outside = space.complement[:, 0].float()
    near = x + 0.1 * x.norm(dim=1, keepdim=True) * outside
    assert bool(accept(space.residual(x), space.expected(x), null_cut=0.3).all())
    assert not bool(accept(space.residual(near), space.expected(near), null_cut=0.3).any())


@pytest.mark.parametrize("width", [0.3, 1.5])
def test_the_law_of_wrong_continuations_keeps_its_rate(width: float) -> None:
    """Residuals of log-normal law, 2,000 to fit and 200,000 to count alarms, members among those that are fitted.

    The standard error of the fitted width is about 2 %, which moves a rate of 1e-3 by a factor of 1.3; a width that is
    wrong by a factor of two moves it by more than thirty.
    """
    rng = torch.Generator().manual_seed(3)
    sample = (torch.randn(2000, generator=rng) * width - 2).exp()
    fresh = (torch.randn(200_000, generator=rng) * width - 2).exp()
    sample[:20] = 1e-7
    null = LogNull.of(sample)
    assert null.center == pytest.approx(-2.0, abs=0.1 * width) and null.width == pytest.approx(width, rel=0.1)
    for rate in (1e-1, 1e-2, 1e-3):
        alarms = int((fresh < null.cut(rate)).sum())
        assert 0.5 * rate * 2e5 < alarms < 2 * rate * 2e5


def test_members_pull_the_fit_of_the_null_only_little() -> None:
    rng = torch.Generator().manual_seed(4)
    squares = torch.distributions.Beta(20.0, 30.0)
    torch.manual_seed(0)
    sample = squares.sample((1500,)).sqrt()
    sample[:100] = 1e-4 * torch.rand(100, generator=rng)
    null = fit_null(sample)
    assert null.a == pytest.approx(20.0, rel=0.15) and null.b == pytest.approx(30.0, rel=0.15)


def test_the_verdict_lies_in_the_middle_between_member_and_null() -> None:
    """Equal distances in logarithm: just below the geometric mean is a member, just above is none."""
    expected, cut = torch.tensor([1e-6, 1e-4, 0.5]), 1e-2
    middle = torch.tensor([1e-4, 1e-3, 1e-2])
    assert bool(accept(0.99 * middle, expected, null_cut=cut).all())
    assert not bool(accept(1.01 * middle, expected, null_cut=cut).any())
    torch.testing.assert_close(log_odds(10 * middle, expected, null_cut=cut), torch.full((3,), math.log(10.0)))
