"""Why: arithmetic that several defenses share. Must not know any of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradleak.core.errors import SpecError

Draw = Callable[[torch.Size, torch.dtype], Tensor]


def rms(tensor: Tensor) -> float:
    """Root mean square of the entries, accumulated in float64."""
    return math.sqrt(float(tensor.double().square().mean()))


def working_dtype(tensor: Tensor) -> torch.dtype:
    """The precision to calculate in: at least float32, so that half-precision updates are rounded only once."""
    return torch.promote_types(tensor.dtype, torch.float32)


def add_noise(tensor: Tensor, draw: Draw) -> Tensor:
    """``tensor`` plus ``draw(shape, dtype)``, rounded once to the dtype of ``tensor``, on its device."""
    dtype = working_dtype(tensor)
    return (tensor.to(dtype) + draw(tensor.shape, dtype).to(tensor.device)).to(tensor.dtype)


def require(condition: bool, name: str, key: str, value: object, wanted: str) -> None:
    """Raises ``SpecError`` unless ``condition``: one wording for every argument out of range."""
    if not condition:
        raise SpecError(f"{name}: {key}={value} is out of range. {key} must be {wanted}.")


def finite_and_not_negative(value: float) -> bool:
    return math.isfinite(value) and value >= 0
