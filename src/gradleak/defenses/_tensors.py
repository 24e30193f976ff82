"""Arithmetic that several defenses share. Must not know any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

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


def on_support(simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Candidates without the entries that the release shows as zero: what pruning did is there to be read."""
    return {name: tensor * (observed[name] != 0) for name, tensor in simulated.items()}


def keep_largest(magnitudes: Tensor, kept: int) -> Tensor:
    """A mask of the ``kept`` largest entries of a vector; of equal ones the earlier is kept."""
    mask = torch.zeros_like(magnitudes, dtype=torch.bool)
    mask[magnitudes.argsort(descending=True, stable=True)[:kept]] = True
    return mask


def kept_count(entries: int, fraction: float) -> int:
    """⌈(1 - fraction)·entries⌉, with ``fraction`` read as the decimal that was written."""
    return math.ceil((1 - Fraction(str(fraction))) * entries)


def smooth_sign(tensor: Tensor, width: float) -> Tensor:
    """u / √(u² + (width·rms)²), rms over the nonzero entries: the sign, with a slope to follow.

    Args:
        tensor: with a leading restarts axis; each restart has its own rms.
    """
    flat = tensor.flatten(1)
    # The map does not change with scale, so dividing by a constant is exact; it keeps the squares of tiny gradients
    # from underflowing.
    peak = flat.detach().abs().amax(1, keepdim=True)
    present = (flat.detach() != 0).sum(1, keepdim=True)
    flat = flat / torch.where(peak > 0, peak, 1.0)
    mean_square = flat.square().sum(1, keepdim=True) / present.clamp(min=1)
    # Any width will do where the whole tensor is zero; a width of zero would have no finite slope.
    mean_square = torch.where(peak > 0, mean_square, 1.0)
    smooth = flat * (flat.square() + width**2 * mean_square).rsqrt()
    return smooth.view(tensor.shape)
