"""The ratio of signal to noise of a known error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.errors import DataError
from gradleak.core.metric import Comparison
from gradleak.metrics.psnr import CAP_DECIBELS, PSNR

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


def test_psnr_of_a_known_error() -> None:
    truth = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    assert PSNR().values(pair(truth, truth + 0.1)) == [pytest.approx(20.0, abs=1e-9)]
    assert PSNR().values(pair(truth, truth + 1e-4)) == [pytest.approx(80.0, abs=1e-6)]
    assert PSNR().values(pair(truth, truth + 1e-6)) == [CAP_DECIBELS]
    assert PSNR().values(pair(truth, truth)) == [CAP_DECIBELS]
