"""What error every entry of a released tensor carries: steps of its number format, levels of a quantizer, the rounding of weights
whose difference was shared, noise that stages are known to add. Must not know attacks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradleak.mechanics.subspace.noise_level import rounding_std
from gradleak.mechanics.subspace.number_format import HALF, SUBNORMAL_STEP, WIDEST, significant_bits

_SUM_ULPS = 2.0
"""Float32 sums over tokens move an entry by about so many units in the last place of the tensor's rms."""


def entry_variance(tensor: Tensor, *, stage_std: float = 0.0, weight: Tensor | None = None, steps: int = 1) -> Tensor:
    """Variance of the error of every entry, float64, positive.

    Args:
        tensor: as it was released.
        stage_std: standard deviation that the stages are known to have added.
        weight: the parameter before training where a difference of weights was shared, None for a gradient; steps: local
            optimizer steps behind that.
    """
    value = tensor.double()
    rms = value.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    bits = significant_bits(tensor)
    floor = (_SUM_ULPS * 2.0**-WIDEST * float(rms)) ** 2 + max(stage_std, rounding_std(tensor)) ** 2
    variance = torch.full_like(value, floor)
    if bits < WIDEST:
        step = _spacing(value, bits)
        if bits == HALF:
            step = step.clamp_min(SUBNORMAL_STEP)
        variance = variance + step.square() / 12.0
    if weight is not None:
        variance = variance + steps * _spacing(weight.detach().double(), WIDEST).square() / 6.0
    return variance


def _spacing(value: Tensor, bits: int) -> Tensor:
    """Distance between the numbers of ``bits`` significant bits around each entry."""
    exponent = torch.frexp(value).exponent
    return torch.where(value == 0, 0.0, torch.ldexp(torch.ones_like(value), exponent - bits))
