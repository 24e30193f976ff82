"""QSGD is unbiased."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.defenses.qsgd import QSGD

pytestmark = pytest.mark.contract


# QSGD, low rank, Soteria


def test_qsgd_is_unbiased() -> None:
    """The mean of 4,000 roundings; each entry within five standard errors (false alarm below 6e-5 for 100 entries)."""
    u, rng, stage = torch.randn(100, generator=derive(0, "u")), derive(1, "q"), QSGD(levels=3)
    released = torch.stack([stage.apply(Update({"a": u}), rng)["a"] for _ in range(4000)])
    step = float(u.abs().max()) / 3
    levels = released / step
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert bool(((released.mean(0) - u).abs() <= 5 * (step / 2) / math.sqrt(4000)).all())
