"""Why: AdamW's first step shares almost only signs, and yet it can be undone. With the moments corrected for their start,

    Δw = −lr · (u + decay · w),      u = g / (|g| + ε)      ⇔      g = ε u / (1 − |u|),

so the gradient is in how far |u| stays below one. What is shared is a difference of rounded weights, which leaves u an
error of about ulp(w) / lr, and g one of ε / (1 − |u|)² times that: small gradients survive, large ones drown. Errors are large
where a feature or an output is, like those of rounding, err_ij ≈ a_i b_j: a column divided by b keeps the column space, and a
goes with it, so that the span of the inputs can be read with noise of known size.

Must not know attacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.core.update import Update
from gradleak.mechanics.client.optimizers import ADAM_EPSILON
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.subspace.noise_level import noise_in, noise_scales
from gradleak.mechanics.subspace.number_format import bits_of_dtype
from gradleak.models import LinearMap

ROUNDED_TWICE = math.sqrt(2.0 / 12.0)
"""Standard deviation, in units in the last place, of the decay's and the step's rounding of a weight."""
_OWN_ROUNDING = 2.0**-23
"""Relative error of u itself: a square root, a division, a product."""
_SATURATED = 2.0
"""Errors by which |u| must stay below one; nearer, the entry says no more than that g is large."""


def undo_first_step(
    delta: Float[Tensor, "*shape"],
    idle: Float[Tensor, "*shape"] | float,
    weight: Float[Tensor, "*shape"],
    *,
    lr: float,
    epsilon: float,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The gradient behind one step of AdamW from fresh moments, and the standard deviation of its error, in float64.

    Args:
        delta: weight after minus before, as it was shared.
        idle: the delta of a zero gradient, which is the decay.
        weight: before the step.
        lr, epsilon: the optimizer's.
    """
    before = weight.double()
    after = before + delta.double()
    u = (delta.double() - idle) / -lr
    last_place = torch.ldexp(
        torch.ones_like(after), after.abs().clamp(min=1e-30).frexp().exponent - bits_of_dtype(weight.dtype)
    )
    error = (ROUNDED_TWICE / lr * last_place).hypot(_OWN_ROUNDING * u)
    room = (1 - u.abs()).maximum(_SATURATED * error)
    return epsilon * u / room, epsilon * error / room.square()


@dataclass(frozen=True, kw_only=True, slots=True)
class UndoneStep:
    """What one step of AdamW tells of the gradients of the blocks' linear maps.

    Attributes:
        gradients: every output in units of its own error.
        noise: standard deviation of what the error then is, by feature, by parameter name.
    """

    gradients: Update
    noise: Mapping[str, Float[Tensor, " features"]]


def first_step(update: Mapping[str, Tensor], trainer: ClientTrainer) -> UndoneStep:
    """Undoes one step of AdamW.

    Raises:
        NotApplicableError: if more than one step was taken, or weights are not kept in float32.
    """
    training = trainer.training
    if not training.single or training.dtype != "float32":
        raise NotApplicableError(
            "The client used AdamW: only its first step on float32 weights can be undone; later steps mix gradients "
            "element by element, and in a short format the difference of the weights holds next to nothing but signs."
        )
    maps = [m for block in trainer.subject.anatomy.blocks for m in block.maps() if m.weight in update]
    parts = {m.weight: _undone(update[m.weight], m, trainer) for m in maps}
    return UndoneStep(
        gradients=Update({name: gradient for name, (gradient, _) in parts.items()}),
        noise={name: rows for name, (_, rows) in parts.items()},
    )


def _undone(
    delta: Tensor, linear: LinearMap, trainer: ClientTrainer
) -> tuple[Float[Tensor, "*stored"], Float[Tensor, " features"]]:
    weight = trainer.subject.module.get_parameter(linear.weight).detach()
    gradient, error = undo_first_step(
        delta, trainer.idle(linear.weight), weight, lr=trainer.training.lr, epsilon=ADAM_EPSILON
    )
    rows, columns = noise_scales(linear.as_matrix(error).T)
    # The bulk of the spectrum tells by how much the errors are larger than two roundings make them.
    size = max(1.0, noise_in(linear.as_matrix(gradient).T / rows.unsqueeze(1) / columns))
    scale = size * columns
    return gradient / (scale if linear.input_first else scale.unsqueeze(1)), rows
