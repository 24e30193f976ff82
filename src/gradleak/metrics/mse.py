"""Mean squared error of pixels, the quantity that PSNR rescales. Must not know the pixel scale of any model."""

from __future__ import annotations

from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._pixels import mean_squared_error, proposed
from gradleak.metrics._sequence import mean


class MSE(Metric):
    """Mean over all channels and pixels of (truth - proposal)², pixels in [0, 1]; no value without a proposal.

    Chance: a uniform draw U for each pixel x gives E (x - U)² = x² - x + 1/3.
    The interval is bootstrapped: errors fill so little of [0, 1] that the exact interval of a rate would say nothing.
    """

    summary: ClassVar[str] = "mean squared error of the pixels, which lie in [0, 1]"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    higher_is_better: ClassVar[bool] = False
    bounded: ClassVar[bool] = False
    best: ClassVar[float] = 0.0

    def values(self, comparison: Comparison) -> list[float]:
        return [mean_squared_error(truth, guess) for truth, guess in proposed(comparison)]

    def chance(self, comparison: Comparison) -> float | None:
        doubles = (truth.double() for truth in comparison.truth)
        return mean([float((pixels.square() - pixels).mean()) + 1.0 / 3.0 for pixels in doubles])
