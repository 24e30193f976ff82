"""Why: the other side of ε: what the noise and the clip cost the training, from the norms of the gradients. Chooses the clip norm
that makes the bound of ``mechanics.sgd_bounds.smooth`` smallest for a given noise multiplier.

Must not know goals, accountants or models. The norms are private data: a clip norm that is chosen from them on the private
records themselves is data-dependent. Take them from public records, or account for the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradleak.core.errors import DataError
from gradleak.privacy.training_cost import sgd_bounds
from gradleak.privacy.training_cost.sgd_bounds import SmoothBound

_QUANTILES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What the cost of noise depends on besides ε.

    Attributes:
        parameters: P. batch_size: B. steps: T.
        smoothness: L, the largest curvature of the loss. initial_gap: Δ₀, at most the loss at the start if losses are not negative.
    """

    parameters: int
    batch_size: int
    steps: int
    smoothness: float
    initial_gap: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """A clip norm with what it costs.

    Attributes:
        clip_norm: C. learning_rate: η of the bound. bound: on the mean squared gradient norm, in its four parts.
        clipped: share of the given gradients that are longer than C.
    """

    clip_norm: float
    learning_rate: float
    bound: SmoothBound
    clipped: float


def clipping_bias(norms: Sequence[float], clip_norm: float) -> float:
    """A bound on ‖mean clip(g_i) - mean g_i‖ from norms alone: mean max(0, ‖g_i‖ - C).

    The triangle inequality; equality if all clipped gradients point the same way, far above the truth if they cancel.
    """
    return float(np.maximum(0.0, np.asarray(norms, dtype=float) - clip_norm).mean())


def cost(
    norms: Sequence[float], clip_norm: float, noise_multiplier: float, training: Training, *, bias: float | None = None
) -> tuple[float, SmoothBound]:
    """The learning rate that is best for the bound, and the bound.

    Args:
        norms: of per-example gradients, at least one, finite.
        bias: ‖b‖ if it was measured; otherwise ``clipping_bias``.
    """
    values = checked(norms)
    energy = sgd_bounds.noise_energy(noise_multiplier, clip_norm, training.batch_size, training.parameters)
    # The second moment of clipped gradients bounds the variance of Poisson batches and of fixed ones alike.
    variance = float(np.square(np.minimum(values, clip_norm)).mean()) / training.batch_size
    rate = sgd_bounds.smooth_learning_rate(
        initial_gap=training.initial_gap,
        smoothness=training.smoothness,
        steps=training.steps,
        sampling_variance=variance,
        energy=energy,
    )
    bound = sgd_bounds.smooth(
        initial_gap=training.initial_gap,
        smoothness=training.smoothness,
        steps=training.steps,
        learning_rate=rate,
        sampling_variance=variance,
        energy=energy,
        bias_square=(clipping_bias(norms, clip_norm) if bias is None else bias) ** 2,
    )
    return rate, bound


def suggest(norms: Sequence[float], noise_multiplier: float, training: Training) -> Suggestion:
    """The clip norm with the smallest bound, searched over the quantiles of the norms and a grid below them.

    Raises:
        DataError: for an empty list of norms, or one that is negative or not finite.
    """
    values = checked(norms)
    top = float(values.max())
    grid = np.unique(
        np.concatenate([np.quantile(values, np.linspace(0, 1, _QUANTILES)), np.geomspace(top / 1e3, top, _QUANTILES)])
    )
    found = [(cost(norms, float(c), noise_multiplier, training), float(c)) for c in grid if c > 0]
    (rate, bound), clip_norm = min(found, key=lambda item: item[0][1].total)
    return Suggestion(clip_norm=clip_norm, learning_rate=rate, bound=bound, clipped=float((values > clip_norm).mean()))


def read_norms(path: Path) -> tuple[float, ...]:
    """Norms from a text file, one number a line. Raises ``DataError`` if it cannot be read as that."""
    try:
        values = tuple(float(line) for line in path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise DataError(
            f"Cannot read the gradient norms {path}: {error.strerror}. Give a text file, one number a line."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} does not hold one number a line: {error}. Write one gradient norm on each line."
        ) from error
    checked(values)
    return values


def checked(norms: Sequence[float]) -> np.ndarray:
    values = np.asarray(norms, dtype=float)
    if (
        values.size == 0
        or not bool(np.isfinite(values).all())
        or bool((values < 0).any())
        or not bool((values > 0).any())
    ):
        raise DataError("The list of gradient norms must hold finite numbers of at least 0, one of them positive.")
    return values
