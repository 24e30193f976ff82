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
from gradleak.metrics.identification_rank import IdentificationRank
from gradleak.metrics.mse import MSE
from gradleak.metrics.psnr import CAP_DECIBELS, PSNR
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


def test_psnr_of_a_known_error() -> None:
    truth = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    assert PSNR().values(pair(truth, truth + 0.1)) == [pytest.approx(20.0, abs=1e-9)]
    assert PSNR().values(pair(truth, truth + 1e-4)) == [pytest.approx(80.0, abs=1e-6)]
    assert PSNR().values(pair(truth, truth + 1e-6)) == [CAP_DECIBELS]
    assert PSNR().values(pair(truth, truth)) == [CAP_DECIBELS]


def test_a_missing_picture_has_no_value() -> None:
    truth, _ = pictures((1, 12, 12), 0.0, seed=1)
    for metric in (MSE(), PSNR(), SSIM()):
        assert metric.values(pair(truth, None)) == []


def test_mse_chance_equals_the_mean_over_a_fine_grid_of_guesses() -> None:
    truth, _ = pictures((1, 6, 6), 0.0, seed=2)
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    expected = float((truth.flatten()[:, None] - grid).square().mean())
    assert MSE().chance(pair(truth, None)) == pytest.approx(expected, abs=1e-6)


def test_identification_rank_of_pictures() -> None:
    truth, guess = pictures((1, 6, 6), 0.2, seed=4)
    others = tuple(pictures((1, 6, 6), 0.0, seed=seed)[0] for seed in range(10, 14))
    rank = IdentificationRank()
    assert rank.values(pair(truth, guess, others)) == [1.0]
    assert rank.values(pair(truth, others[2], others)) == [
        1.0 + sum(bool((others[2] - o).square().mean() < (others[2] - truth).square().mean()) for o in others)
    ]
    assert rank.values(pair(truth, None, others)) == [3.0]
    assert rank.chance(pair(truth, guess, others)) == 3.0
