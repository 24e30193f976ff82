"""Fed-α-CDP: the noise follows the longest gradient of the private batch, so its size tells about the batch, and nothing is claimed."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.errors import SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import Run
from gradleak.defenses.fed_alpha_cdp import FedAlphaCDP

pytestmark = pytest.mark.contract


def rows(*lengths: float) -> dict[str, torch.Tensor]:
    """Gradients of these norms in 20,000 entries."""
    made = torch.zeros(len(lengths), 20_000)
    made[:, 0] = torch.tensor(lengths)
    return {"w": made}


@pytest.mark.parametrize(("longest", "unit"), [(0.01, 0.1), (2.0, 2.0), (99.0, 32.0)])
def test_the_noise_has_the_size_of_the_longest_gradient_within_limits(longest: float, unit: float) -> None:
    stage = FedAlphaCDP(noise_multiplier=0.5)
    released = stage.aggregate(rows(longest / 2, longest), 0, derive(0, "noise"))["w"]
    # 20,000 draws: the standard deviation is known to .5 %, four of which are 2 %.
    assert float(released[1:].std()) == pytest.approx(0.5 * unit / 2, rel=0.02)


def test_nothing_is_clipped_below_the_longest() -> None:
    stage = FedAlphaCDP(noise_multiplier=0.0)
    assert float(stage.aggregate(rows(1.0, 3.0), 0, derive(0))["w"][0]) == pytest.approx(2.0, rel=1e-5)
    assert float(stage.aggregate(rows(40.0, 64.0), 0, derive(0))["w"][0]) == pytest.approx(32.0, rel=1e-5)


def test_two_neighbors_have_noise_of_different_size() -> None:
    """The very reason why there is no guarantee: one record more and the noise is ten times larger."""
    stage = FedAlphaCDP(noise_multiplier=1.0)
    sizes = [float(stage.aggregate(rows(*g), 0, derive(1))["w"][1:].std()) for g in ((1.0, 1.0), (1.0, 10.0))]
    assert sizes[1] / sizes[0] == pytest.approx(10.0, rel=0.03)


def test_it_describes_a_clip_that_follows_the_data_and_its_reader_expects_the_upper_limit() -> None:
    stage = FedAlphaCDP(noise_multiplier=0.5, high=8.0)
    described = stage.describe(Run(steps=3))
    assert described["clip"] == "data" and described["steps"] == 3
    assert stage.step_noise_std(4) == pytest.approx(0.5 * 8.0 / 4)
    assert stage.norm_bound() is None and stage.example_bound() is None


@pytest.mark.parametrize(
    "changed", [{"low": 0.0}, {"low": 9.0, "high": 8.0}, {"high": math.inf}, {"noise_multiplier": -1.0}]
)
def test_limits_that_cannot_be_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="out of range"):
        FedAlphaCDP(**({"noise_multiplier": 1.0} | changed))
