"""The suggested clip norm against exhaustive search, and the bias bound against measured biases."""

from __future__ import annotations

import numpy as np
import pytest

from gradleak.privacy.training_cost.clip_choice import Training, clipping_bias, cost, suggest

pytestmark = pytest.mark.oracle

TRAINING = Training(parameters=500, batch_size=32, steps=1000, smoothness=1.0, initial_gap=1.0)


@pytest.mark.parametrize("noise_multiplier", [0.1, 1.0, 10.0])
def test_no_other_clip_norm_is_better(noise_multiplier: float) -> None:
    norms = np.random.default_rng(0).lognormal(size=400)
    found = suggest(norms.tolist(), noise_multiplier, TRAINING)
    for clip_norm in np.geomspace(1e-3, 50, 400):
        _, bound = cost(norms.tolist(), float(clip_norm), noise_multiplier, TRAINING)
        assert found.bound.total <= bound.total * (1 + 1e-3)
    assert found.clipped == pytest.approx((norms > found.clip_norm).mean())


def test_more_noise_asks_for_a_shorter_clip() -> None:
    norms = np.random.default_rng(1).lognormal(size=400).tolist()
    clips = [suggest(norms, z, TRAINING).clip_norm for z in (0.1, 1.0, 10.0, 100.0)]
    assert clips == sorted(clips, reverse=True) and clips[0] > clips[-1]


def test_the_bias_bound_lies_above_the_bias_and_is_reached() -> None:
    rng = np.random.default_rng(2)
    gradients = rng.normal(size=(300, 20)) + 0.3
    norms = np.linalg.norm(gradients, axis=1)
    for clip_norm in (0.5, 3.0, 5.0, 100.0):
        clipped = gradients * np.minimum(1, clip_norm / norms)[:, None]
        measured = float(np.linalg.norm(clipped.mean(0) - gradients.mean(0)))
        assert measured <= clipping_bias(norms.tolist(), clip_norm) + 1e-12
    line = np.linspace(1, 2, 50)
    assert clipping_bias(line.tolist(), 1.5) == pytest.approx(abs(np.minimum(line, 1.5).mean() - line.mean()))


def test_a_measured_bias_takes_the_place_of_the_bound() -> None:
    norms = [1.0, 2.0, 3.0]
    assert cost(norms, 1.0, 1.0, TRAINING, bias=0.25)[1].bias == 0.0625
    assert cost(norms, 1.0, 1.0, TRAINING)[1].bias == 1.0
