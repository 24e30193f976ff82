"""Each ``Guarantees`` bullet of ``laplace``."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from gradleak.core.update import Update
from gradleak.harness.request.catalogue import make_stages

pytestmark = pytest.mark.contract

STAGE = make_stages("laplace(scale=0.3)")[0]


def test_noise_has_the_laplace_distribution() -> None:
    """Kolmogorov-Smirnov at level 1e-4; the seed is fixed."""
    released = STAGE.apply(Update({"a": torch.zeros(50_000)}), torch.Generator().manual_seed(0))
    assert stats.kstest(released["a"].double().numpy() / 0.3, "laplace").pvalue > 1e-4
    assert bool((released["a"] != 0).all())


def test_noise_std_is_root_two_times_the_scale() -> None:
    assert STAGE.noise_std(torch.ones(3)) == math.sqrt(2.0) * 0.3


def test_claims_nothing() -> None:
    assert STAGE.gaussian_multiplier() is None and STAGE.norm_bound() is None and not STAGE.preserves_norm_bound()
