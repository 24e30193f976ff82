"""The law of strangers holds its rate; members are accepted and near misses are not."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.mechanics.subspace.null_laws import accept, fit_null
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
