"""The one formula under the image metrics."""

from __future__ import annotations

import pytest
import torch

from gradleak.metrics._pixels import mean_squared_error

pytestmark = pytest.mark.contract


# Metrics: PSNR is made from the mean squared error, not from its root


def test_psnr_comes_from_the_mean_squared_error() -> None:
    from gradleak.core.metric import Comparison
    from gradleak.metrics.psnr import PSNR

    truth = torch.full((1, 8, 8), 0.5)
    pair = (truth, truth + 0.1)
    shown = Comparison(
        truth=pair[:1], guess=pair[1:], aligned=(pair,), extras=(), ordered=True, decoys=(), special_ids=frozenset(),
        vocab_size=0, decode=lambda _: "",
    )  # fmt: skip
    assert PSNR().values(shown) == [pytest.approx(20.0, abs=1e-4)], "10 log10(1 / 0.1²), not 10 log10(1 / 0.1)"
    assert mean_squared_error(*pair) == pytest.approx(0.01, rel=1e-5)
