"""Bottlenecks: the penalty, the law of their codes and the grid that the convolution sees."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.models.running.bottleneck import ConvolutionalBottleneck, LinearBottleneck

pytestmark = pytest.mark.oracle


def test_the_penalty_is_the_divergence_from_a_standard_normal_in_bits() -> None:
    torch.manual_seed(0)
    layer, x = LinearBottleneck(5, 3, 0.7), torch.randn(4, 5)
    mean, std = layer.moments(x)
    codes, standard = torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(codes, standard).sum(1) * 0.7 / math.log(2)
    torch.testing.assert_close(layer.penalty(x), expected)


def test_codes_have_the_mean_and_the_spread_that_they_say() -> None:
    torch.manual_seed(0)
    layer, x = LinearBottleneck(5, 3, 0.0), torch.randn(1, 5).expand(200_000, 5)
    layer.decoder = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        mean, std = layer.moments(x[:1])
        named = {"noise": layer.draw((200_000, 3), derive(0, "noise"))}
        codes = torch.func.functional_call(layer, named, (x,))
    torch.testing.assert_close(codes.mean(0), mean[0], atol=0.02, rtol=0.0)
    torch.testing.assert_close(codes.std(0), std[0], atol=0.02, rtol=0.0)


def test_the_convolution_sees_the_grid_of_patches() -> None:
    """One patch disturbed changes its neighbors' codes and no others; the class token's code is its own."""
    torch.manual_seed(0)
    layer = ConvolutionalBottleneck(4, 8, 3, 0.1, (3, 4))
    x = torch.randn(1, 13, 4)
    moved = x.clone()
    moved[0, 1 + 0 * 4 + 1] += 1.0
    with torch.no_grad():
        changed = (layer.moments(x)[0] - layer.moments(moved)[0]).abs().sum(-1)[0] > 1e-6
    assert not changed[0]
    assert changed[1:].reshape(3, 4).tolist() == [[True, True, True, False]] * 2 + [[False] * 4]
