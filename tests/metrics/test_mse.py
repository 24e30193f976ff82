"""The mean squared error against a fine grid of guesses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.errors import DataError
from gradleak.core.metric import Comparison
from gradleak.metrics.mse import MSE

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


def test_mse_chance_equals_the_mean_over_a_fine_grid_of_guesses() -> None:
    truth, _ = pictures((1, 6, 6), 0.0, seed=2)
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    expected = float((truth.flatten()[:, None] - grid).square().mean())
    assert MSE().chance(pair(truth, None)) == pytest.approx(expected, abs=1e-6)
