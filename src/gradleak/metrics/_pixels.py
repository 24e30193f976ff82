"""What the image metrics share. Must not know any one of them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from gradleak.core.metric import Comparison

Image = Float[Tensor, "channels height width"]


def proposed(comparison: Comparison) -> list[tuple[Tensor, Tensor]]:
    """The pairs that have a proposal: a picture that was not proposed has no distance from the truth."""
    return [
        (truth, guess) for truth, guess in zip(comparison.truth, comparison.guess, strict=True) if guess is not None
    ]


def mean_squared_error(truth: Image, guess: Image) -> float:
    """Mean squared difference in float64."""
    return float((truth.double() - guess.double()).square().mean())
