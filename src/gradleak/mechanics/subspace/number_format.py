"""The number format that a tensor shows, whatever it was multiplied by afterwards and however it is stored.

A format of p significant bits has 2^(p − 1) significands. A common factor moves all of them to other values and leaves
their number, so the format is read from the count of different significands, never from the bit pattern at one scale.
Must not know gradients, models or noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

WIDEST = 24
"""Significant bits of float32. Gradients that are stored in float64 are sums, averages or casts of float32 values: their own
computation left no more."""
HALF = 11
"""Significant bits of float16."""
SIGNIFICANT_BITS: Mapping[str, int] = {"float32": WIDEST, "bf16": 8, "fp16": HALF, "fp8": 4}
"""Bits of the significand by name of the format, the leading one included; fp8 is the e4m3 format."""
ROUNDING_STD = 0.4247
"""Rounding to p significant bits adds this much times 2⁻ᵖ of an entry's size: 1 / (2 √ln 4), for a uniform error and log-uniform
significands, to four digits."""
SUBNORMAL_STEP = 2.0**-24
"""Spacing of the smallest float16 numbers: below 2⁻¹⁴ the error stops shrinking with the entry."""
_MULTIPLES, _NEAR, _ENOUGH = 64, 1e-3, 32
"""Entries up to so many times the smallest, so near to whole multiples of it, and so many of them, are evidence of a step."""
_SHORT = ((torch.bfloat16, 8), (torch.float16, HALF))
_SAMPLED = 4096
_PER_SIGNIFICAND = 4
"""Entries per significand from which a count is evidence: with so many a format shows 98 % of its significands, while as many
float32 entries nearly all differ."""


def significant_bits(tensor: Tensor) -> int:
    """Bits of the narrowest usual format whose entries, times one common factor, these can be: 8 (bf16), 11 (fp16) or 24.

    A tensor that a short format holds as it is, at any power of two, counts whatever its size. Behind another factor a
    tensor of few entries says nothing, and counts as float32.
    """
    few = tensor.flatten()[:_SAMPLED]
    for dtype, bits in _SHORT:
        if all(_held(part, dtype, bits) for part in (few, tensor)):
            return bits
    return _counted(tensor)


def relative_rounding(bits: int) -> float:
    """Standard deviation of one rounding to so many significant bits, in units of the root mean square of the entries."""
    return ROUNDING_STD * 2.0**-bits


def bits_of_dtype(dtype: torch.dtype) -> int:
    """Significant bits of a floating-point type of torch."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def _held(tensor: Tensor, dtype: torch.dtype, bits: int) -> bool:
    if bool((tensor.to(dtype).to(tensor.dtype) == tensor).all()):
        return True
    scaled = tensor.frexp().mantissa * 2.0**bits
    return bool((scaled == scaled.round()).all())


def _counted(tensor: Tensor) -> int:
    entries = tensor[tensor != 0]
    for count in (min(entries.numel(), _PER_SIGNIFICAND * 2 ** (_SHORT[-1][1] - 1)), entries.numel()):
        bits = _bits_of(entries[:count])
        if bits == WIDEST:
            break
    return bits


def _bits_of(entries: Tensor) -> int:
    # A factor rounds every product to float32: what is left of a significand is compared with a little room.
    different = (entries.double().frexp().mantissa.abs() * 2.0 ** (WIDEST - 2)).round().unique().numel()
    for _, bits in _SHORT:
        significands = 2 ** (bits - 1)
        # No more than half of them: a grid of equidistant levels, which ``noise_level.rounding_std`` knows.
        if entries.numel() >= _PER_SIGNIFICAND * significands and significands // 2 < different <= significands:
            return bits
    return WIDEST


def smallest_step(tensor: Tensor) -> float:
    """The spacing of the smallest entries of a tensor of float16 numbers, times whatever factor they bear; 0 if none shows."""
    if bool((tensor.to(torch.float16).to(tensor.dtype) == tensor).all()):
        return SUBNORMAL_STEP
    sizes = tensor[tensor != 0].abs().double()
    if not sizes.numel():
        return 0.0
    step = sizes.min()
    multiples = sizes[sizes <= _MULTIPLES * step] / step
    apart = (multiples - multiples.round()).abs()
    return float(step) if multiples.numel() >= _ENOUGH and float(apart.max()) < _NEAR else 0.0
