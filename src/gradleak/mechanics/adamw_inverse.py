"""Why: AdamW's first step shares almost only signs, and yet it can be undone. With the moments corrected for their start,

    Δw = −lr · (u + decay · w),      u = g / (|g| + ε)      ⇔      g = ε u / (1 − |u|),

so the gradient is in how far |u| stays below one. What is shared is a difference of rounded weights, which leaves u an
error of about ulp(w) / lr, and g one of ε / (1 − |u|)² times that: small gradients survive, large ones drown. A column
of a matrix divided by its own error keeps the column space, so the span of the inputs can be read with noise of known size.

Must not know attacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.core.update import Update
from gradleak.mechanics.optimizers import ADAM_EPSILON
from gradleak.mechanics.training import ClientTrainer
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
    last_place = torch.ldexp(torch.ones_like(after), after.abs().clamp(min=1e-30).frexp().exponent - _bits(weight))
    error = (ROUNDED_TWICE / lr * last_place).hypot(_OWN_ROUNDING * u)
    room = (1 - u.abs()).maximum(_SATURATED * error)
    return epsilon * u / room, epsilon * error / room.square()


def first_step_gradients(update: Mapping[str, Tensor], trainer: ClientTrainer) -> Update:
    """Gradients of the blocks' linear maps behind one step of AdamW, every output in units of its own error.

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
    return Update({m.weight: _undone(update[m.weight], m, trainer) for m in maps})


def _undone(delta: Tensor, linear: LinearMap, trainer: ClientTrainer) -> Float[Tensor, "*stored"]:
    weight = trainer.subject.module.get_parameter(linear.weight).detach()
    gradient, error = undo_first_step(
        delta, trainer.idle(linear.weight), weight, lr=trainer.training.lr, epsilon=ADAM_EPSILON
    )
    # By output: the axis that the column space is summed over.
    inputs = 0 if linear.input_first else 1
    return gradient / error.square().mean(dim=inputs, keepdim=True).sqrt()


def _bits(weight: Tensor) -> int:
    """Significant bits of the format that the weights are kept in."""
    return 1 - round(math.log2(torch.finfo(weight.dtype).eps))
