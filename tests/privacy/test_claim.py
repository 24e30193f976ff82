"""A claim is computed from the stages, or it is no guarantee and says why."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.harness.request.catalogue import make_stages
from gradleak.privacy.accounting import gaussian
from gradleak.privacy.claim import claim

pytestmark = pytest.mark.oracle

CHAINS_WITHOUT_GUARANTEE = (
    "none",
    "gaussian(std=10.0)",
    "gaussian(relative_std=10.0)",
    "laplace(scale=10.0)",
    "clip(max_norm=1.0)",
    "clip(max_norm=1.0)+gaussian(std=10.0)",
    "clip(max_norm=1.0)+laplace(scale=10.0)",
    "clip(max_norm=1.0)+gaussian(relative_std=1.0)",
    "clip(max_norm=1.0)+gaussian(noise_multiplier=0.0)",
    "clip(max_norm=1.0)+gaussian(noise_multiplier=1e-200)",
    "sign()+prune(fraction=0.9)+quantize(dtype=int8)",
)


@pytest.mark.parametrize(
    "chain",
    [
        "clip(max_norm=3.0)+gaussian(noise_multiplier=0.5)",
        "prune(fraction=0.9)+clip(max_norm=3.0)+gaussian(noise_multiplier=0.5)",
        "clip(max_norm=3.0)+prune(fraction=0.9)+gaussian(noise_multiplier=0.5)",
        "clip(max_norm=9.0)+sign()+clip(max_norm=3.0)+gaussian(noise_multiplier=0.5)+quantize(dtype=int8)",
        "clip(max_norm=3.0)+gaussian(noise_multiplier=0.5)+sign()+laplace(scale=1.0)",
        "clip(max_norm=1.0)+gaussian(noise_multiplier=0.1)+clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)",
        "clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)+clip(max_norm=1.0)+gaussian(noise_multiplier=0.1)",
    ],
)
def test_clip_then_noise_is_one_gaussian_release(chain: str) -> None:
    accountant = pld_privacy_accountant.PLDAccountant().compose(dp_event.GaussianDpEvent(0.5))
    found = claim(make_stages(chain))
    assert found["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), abs=2e-4)
    assert found["epsilon_replace"] == pytest.approx(gaussian.epsilon(0.25, 1e-5))
    assert found["delta"] == 1e-5 and "multiplier 0.5" in found["mechanism"] and "9.997" in found["statement"]


@pytest.mark.parametrize("chain", CHAINS_WITHOUT_GUARANTEE)
def test_anything_else_is_no_guarantee_and_says_why(chain: str) -> None:
    found = claim(make_stages(chain))
    assert found["epsilon"] is None and found["epsilon_replace"] is None
    assert found["statement"].startswith("no guarantee: ") and len(found["statement"]) > 40
    assert "protected" not in found["statement"]


def test_a_bound_that_was_lost_gives_no_guarantee() -> None:
    """The accountant checks for itself; it does not rely on ``bind`` having refused the chain."""
    clip, noise = make_stages("clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)")

    class Longer(UpdateStage):
        def apply(self, update: Update, rng: torch.Generator) -> Update:
            return update.map(lambda _, tensor: 10.0 * tensor)

        def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return {name: 10.0 * tensor for name, tensor in simulated.items()}

    assert claim((clip, Longer(), noise))["epsilon"] is None
    assert claim((noise, clip))["epsilon"] is None
    assert "clip" in claim((noise,))["statement"]


@pytest.mark.parametrize("chain", [*CHAINS_WITHOUT_GUARANTEE, "clip(max_norm=3.0)+gaussian(noise_multiplier=0.01)"])
def test_claims_are_plain_data_of_one_shape(chain: str) -> None:
    found = claim(make_stages(chain), delta=1e-6)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found.keys() == claim(()).keys()
    assert found["unit"] and found["view"] and found["relation"].startswith("zero-out")
