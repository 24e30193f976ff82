"""Why: AdamW's first step shares almost only signs, and yet it can be undone. With the moments corrected for their start,

    Δw = −lr · (u + decay · w),      u = g / (|g| + ε)      ⇔      g = ε u / (1 − |u|),

so the gradient is in how far |u| stays below one. What is shared is a difference of rounded weights, which leaves u an
error of about ulp(w) / lr, and g one of ε / (1 − |u|)² times that: small gradients survive, large ones drown. A column
of a matrix divided by its own error keeps the column space, so the span of the inputs can be read with noise of known size.

Must not know attacks.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

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


def in_units_of_error(
    gradient: Float[Tensor, "outputs features"], error: Float[Tensor, "outputs features"]
) -> Float[Tensor, "rows features"]:
    """A matrix whose rows span the same inputs, with noise of size one.

    Every output is divided by the root mean square of its errors. A feature with errors so large that they alone would
    pass for a direction, v > (1 + √(features / outputs))² in these units, is given up: it is set to zero everywhere, and
    an output that reads only this feature is added, so that the space holds it whatever the batch. What is left has
    errors of one size.
    """
    outputs, features = gradient.shape
    limit = (1 + math.sqrt(features / outputs)) ** 2
    kept = error.new_ones(features, dtype=torch.bool)
    while True:
        unit = error[:, kept].square().mean(dim=1, keepdim=True).sqrt()
        size = (error / unit).square().mean(dim=0)
        worse = kept & (size > limit)
        if not bool(worse.any()) or int(kept.sum()) <= features // 2:
            break
        kept &= ~worse
    even = torch.where(kept, gradient / unit, 0.0)
    given_up = torch.eye(features, dtype=gradient.dtype, device=gradient.device)[~kept]
    return torch.cat((even, float(even.norm()) * given_up))


def _bits(weight: Tensor) -> int:
    """Significant bits of the format that the weights are kept in."""
    return 1 - round(math.log2(torch.finfo(weight.dtype).eps))
