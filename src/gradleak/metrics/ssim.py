"""Likeness of structure, which pixel distances miss. Must not resize or pad the picture."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.functional import conv2d

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._pixels import Image, proposed

_SIGMA = 1.5
_RADIUS = 5
_C1 = 0.01**2
_C2 = 0.03**2


class SSIM(Metric):
    """Structural similarity with a Gaussian window (sigma = 1.5, 11 by 11), pixels in [0, 1]; no value without a proposal.

    With local means μ, variances v and covariance c under the window, C1 = 0.01², C2 = 0.03²:
    (2 μx μy + C1)(2 c + C2) / ((μx² + μy² + C1)(vx + vy + C2)), averaged over all places where the window fits, then
    over channels. Values lie in [-1, 1].

    Deviations: a picture less than 11 pixels wide or high has the largest odd window that fits, sigma unchanged.
    """

    summary: ClassVar[str] = "structural similarity of the pictures (Gaussian window, sigma = 1.5)"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    bounded: ClassVar[bool] = False

    def values(self, comparison: Comparison) -> list[float]:
        return [structural_similarity(truth, guess) for truth, guess in proposed(comparison)]

    def chance(self, comparison: Comparison) -> float | None:
        return None


def structural_similarity(truth: Image, guess: Image) -> float:
    """SSIM of two pictures ``[channels height width]`` with pixels in [0, 1]."""
    left, right = truth.double(), guess.double()
    window = _window(min(truth.shape[-2:]))
    moments = _blur(torch.stack((left, right, left * left, right * right, left * right)), window)
    mean_left, mean_right = moments[0], moments[1]
    variance_left = moments[2] - mean_left.square()
    variance_right = moments[3] - mean_right.square()
    covariance = moments[4] - mean_left * mean_right
    luminance = (2 * mean_left * mean_right + _C1) / (mean_left.square() + mean_right.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_left + variance_right + _C2)
    return float((luminance * structure).mean())


def _window(side: int) -> Float64[Tensor, " taps"]:
    radius = min(_RADIUS, (side - 1) // 2)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / _SIGMA).square())
    return weights / weights.sum()


def _blur(maps: Float64[Tensor, "moments channels height width"], window: Float64[Tensor, " taps"]) -> Tensor:
    """Separable weighted means over every place where the window fits."""
    flat = maps.flatten(0, 1).unsqueeze(1)
    blurred = conv2d(conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return blurred.view(*maps.shape[:2], *blurred.shape[-2:])
