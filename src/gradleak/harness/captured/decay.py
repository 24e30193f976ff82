"""Weight decay adds a multiple of the weights to a change, the same for all: Δ = c · W + what the data did. Rows of a table that no token
reached show c by themselves. Must not know attacks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_ROWS = 256
"""A table of fewer rows may have none that no token reached."""
_IDLE = 0.5
_ULPS = 4.0 * 2.0**-24
"""Rounding of a difference of float32 weights, relative to the weights, with room."""
_NEAR = 1e-2
"""Relative distance from c · W below which a row is taken to have moved by decay alone."""


def undo_decay(
    update: Mapping[str, Tensor], weights: Mapping[str, Tensor], *, known: float | None = None
) -> tuple[dict[str, Tensor], str]:
    """The update without decay, and a sentence if there was any.

    Args:
        weights: before training, by name.
        known: c where it is known; else it is read from rows that decay alone has moved.
    """
    decay = known if known is not None else _estimated(update, weights)
    if not decay:
        return dict(update), ""
    own = {name: _without(t, weights[name], decay) if name in weights else t for name, t in update.items()}
    how = "as known" if known is not None else "read from rows that no token reached"
    return own, f"Weight decay of {decay:.4g} times the weights ({how}) was taken off."


def _without(tensor: Tensor, weight: Tensor, decay: float) -> Tensor:
    less = tensor.double() - decay * weight.double()
    # Trainers spare biases and normalizations: there it is taken off only if it is there.
    if tensor.ndim < 2:
        return less.to(tensor.dtype) if float(less.norm()) < float(tensor.double().norm()) else tensor
    still = (
        less.abs() <= _ULPS * weight.double().abs().clamp(min=1e-30) + _NEAR * abs(decay) * weight.double().abs()
    ).all(dim=1, keepdim=True)
    return less.masked_fill(still, 0.0).to(tensor.dtype)


def _estimated(update: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> float | None:
    tables = [n for n, t in update.items() if n in weights and t.ndim == 2 and t.shape == weights[n].shape]
    tables = [n for n in tables if update[n].shape[0] >= _ROWS]
    for name in sorted(tables, key=lambda n: -update[n].shape[0]):
        change, weight = update[name].double(), weights[name].double()
        lengths = weight.square().sum(dim=1)
        live = lengths > 0
        slopes = (change * weight).sum(dim=1)[live] / lengths[live]
        slope = float(slopes.median())
        off = (change[live] - slope * weight[live]).norm(dim=1)
        allowed = _NEAR * abs(slope) * lengths[live].sqrt() + _ULPS * lengths[live].sqrt()
        if slope and float((off <= allowed).double().mean()) > _IDLE and abs(slope) > _least(change, weight):
            return slope
    return None


def _least(change: Tensor, weight: Tensor) -> float:
    """A slope below which rounding alone could be it."""
    return float(torch.finfo(torch.float32).eps) if bool((change != 0).any()) and bool((weight != 0).any()) else 1.0
