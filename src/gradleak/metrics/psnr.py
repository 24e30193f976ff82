"""The field's usual measure of pictures, in decibels. Must not return infinity: records are JSON."""

from __future__ import annotations

import math
from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._pixels import mean_squared_error, proposed

CAP_DECIBELS = 100.0
"""Value given to any error below 1e-10: far under the step of 8-bit pixels (48 dB). SATURATED_METRIC marks it."""


class PSNR(Metric):
    """10 log10(1 / MSE) per picture, pixels in [0, 1], capped at 100 dB; no value without a proposal."""

    summary: ClassVar[str] = "peak signal-to-noise ratio in decibels, capped at 100"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    bounded: ClassVar[bool] = False
    best: ClassVar[float] = CAP_DECIBELS

    def values(self, comparison: Comparison) -> list[float]:
        return [_decibels(mean_squared_error(truth, guess)) for truth, guess in proposed(comparison)]

    def chance(self, comparison: Comparison) -> float | None:
        return None


def _decibels(error: float) -> float:
    return CAP_DECIBELS if error <= 10.0 ** (-CAP_DECIBELS / 10.0) else -10.0 * math.log10(error)
