"""Image metrics against scikit-image and, where it does not go, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from gradleak.core.errors import DataError
from gradleak.core.metric import Comparison
from gradleak.metrics.mse import MSE
from gradleak.metrics.psnr import PSNR
from gradleak.metrics.ssim import SSIM

pytestmark = pytest.mark.oracle


def pair(truth: Tensor, guess: Tensor | None, decoys: tuple[Tensor, ...] = ()) -> Comparison:
    return Comparison(
        truth=(truth,),
        guess=(guess,),
        aligned=((truth, guess),),
        extras=(),
        ordered=True,
        decoys=decoys,
        special_ids=frozenset(),
        vocab_size=0,
        decode=_no_text,
    )


def _no_text(ids: Tensor) -> str:
    raise DataError("images have no text")


def pictures(shape: tuple[int, int, int], blend: float, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=rng, dtype=torch.float64)
    truth = truth.cumsum(dim=-1) / truth.sum(dim=-1, keepdim=True)
    return truth, (1 - blend) * truth + blend * torch.rand(shape, generator=rng, dtype=torch.float64)


SHAPES = [(3, 32, 32), (1, 28, 28), (3, 11, 40), (2, 17, 11), (3, 64, 48)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blend", [0.0, 0.01, 0.5, 1.0])
def test_image_metrics_equal_scikit_image(shape: tuple[int, int, int], blend: float) -> None:
    truth, guess = pictures(shape, blend, seed=3)
    left, right = truth.numpy(), guess.numpy()
    ssim = structural_similarity(
        left, right, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=0
    )
    given = pair(truth, guess)
    assert SSIM().values(given) == [pytest.approx(ssim, abs=1e-6)]
    assert MSE().values(given) == [pytest.approx(mean_squared_error(left, right), rel=1e-9, abs=1e-15)]
    if blend:
        assert PSNR().values(given) == [pytest.approx(peak_signal_noise_ratio(left, right, data_range=1.0), abs=1e-9)]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 4, 20), (1, 1, 1)])
def test_ssim_of_small_pictures_equals_plain_loops(shape: tuple[int, int, int]) -> None:
    truth, guess = pictures(shape, 0.3, seed=5)
    side = min(shape[1:])
    size = side if side % 2 else side - 1
    assert SSIM().values(pair(truth, guess)) == [
        pytest.approx(_ssim_by_loops(truth.numpy(), guess.numpy(), size), abs=1e-9)
    ]


def _ssim_by_loops(left: np.ndarray, right: np.ndarray, size: int) -> float:
    taps = [math.exp(-((k - size // 2) ** 2) / (2 * 1.5**2)) for k in range(size)]
    window = np.outer(taps, taps) / sum(taps) ** 2
    local = []
    for channel in range(left.shape[0]):
        for row in range(left.shape[1] - size + 1):
            for column in range(left.shape[2] - size + 1):
                x = left[channel, row : row + size, column : column + size]
                y = right[channel, row : row + size, column : column + size]
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                top = (2 * mx * my + 0.01**2) * (2 * cov + 0.03**2)
                local.append(top / ((mx**2 + my**2 + 0.01**2) * (vx + vy + 0.03**2)))
    return float(np.mean(local))


def test_a_missing_picture_has_no_value() -> None:
    truth, _ = pictures((1, 12, 12), 0.0, seed=1)
    for metric in (MSE(), PSNR(), SSIM()):
        assert metric.values(pair(truth, None)) == []
