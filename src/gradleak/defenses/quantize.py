"""Updates travel in short number formats; this measures what the rounding hides. Must not be taken for noise by
the accountant: rounding is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import require, rms, working_dtype

_FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SIGNIFICAND_BITS = {"bf16": 8, "fp16": 11}
_RELATIVE_ERROR = 1.0 / math.sqrt(6.0)
"""Standard deviation of the rounding error in units of 2^-bits·rms, with 2 as the mean square of a significand in
[1, 2). Entries spread evenly over a logarithmic scale give 0.39, Gaussian entries 0.43; the tests measure both."""
_LEVELS = 127


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantize(UpdateStage):
    """Rounds every entry to a short number format and back to the format it came in.

        bf16, fp16: released = nearest representable number; what lies beyond the largest one
                    (65504 in fp16) saturates there instead of becoming infinite
        int8:       released = Δ·round(u/Δ),   Δ = max|u_t| / 127 for each tensor u_t (symmetric, to nearest, ties to even)

    Args:
        dtype: "bf16", "fp16" or "int8". An update that already is in that format is not changed by bf16 or fp16.

    Raises:
        SpecError: for another format.

    Guarantees:
        Deterministic. The error of an entry is at most 2^-8 (bf16) or 2^-11 (fp16, normal range) of it, or Δ/2 (int8).
        Zero stays zero; a tensor of zeros stays so. Rounding may lengthen the update a little, so an earlier norm bound
        is not kept. No differential privacy.
        The surrogate is to do nothing: the rounding error is small and has mean zero over entries.
    """

    summary: ClassVar[str] = "Rounds every entry to bf16, fp16 or int8."

    dtype: Literal["bf16", "fp16", "int8"]

    def __post_init__(self) -> None:
        require(self.dtype in ("bf16", "fp16", "int8"), "quantize", "dtype", self.dtype, "bf16, fp16 or int8")

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        if self.dtype == "int8":
            return update.map(lambda _, tensor: _round_to_levels(tensor))
        return update.map(lambda _, tensor: _round_to_float(tensor, _FLOATS[self.dtype]))

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return simulated

    def surrogate_is_identity(self) -> bool:
        return True

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float:
        if self.dtype == "int8":
            return float(observed.abs().max()) / _LEVELS / math.sqrt(12.0)
        return _RELATIVE_ERROR * 2.0 ** -_SIGNIFICAND_BITS[self.dtype] * rms(observed)


def _round_to_float(tensor: Tensor, short: torch.dtype) -> Tensor:
    largest = torch.finfo(short).max
    # In float32, because a bf16 tensor cannot hold the largest fp16 number and would clamp above it.
    wide = tensor.to(working_dtype(tensor)).clamp(-largest, largest)
    return wide.to(short).to(tensor.dtype)


def _round_to_levels(tensor: Tensor) -> Tensor:
    wide = tensor.to(working_dtype(tensor))
    peak = wide.abs().max()
    step = peak / _LEVELS
    if not bool(step > 0):  # All zeros, or so small that the step underflows: nothing to round.
        return tensor.clone()
    # The clamp undoes a last bit of rounding in 127·Δ, which could overflow at the top of the range.
    return ((wide / step).round() * step).clamp(-peak, peak).to(tensor.dtype)
