"""Tokens that pass the first test, per position.
Must not know how they were tested or what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Tokens that pass the first test, per position; where positions do not enter the input all entries are equal.

    Attributes:
        tokens: token ids per position, best first; residuals beside them.
        nearest: per position, the token with the smallest residual of all, whether it passes or not; up to ``length()``.
        null_cut: residual below which no non-member is expected among all pairs.
        positional: whether the input depends on the position.
    """

    tokens: tuple[Int64[Tensor, " tokens"], ...]
    residuals: tuple[Float[Tensor, " tokens"], ...]
    nearest: Int64[Tensor, " positions"]
    null_cut: float
    positional: bool

    def count(self) -> int:
        """Number of pairs of token and position."""
        return sum(ids.numel() for ids in self.tokens)

    def length(self) -> int:
        """Number of leading positions up to the last one with a candidate."""
        filled = [p for p, ids in enumerate(self.tokens) if ids.numel()]
        return filled[-1] + 1 if filled else 0

    def bag(self) -> Int64[Tensor, " tokens"]:
        """Every token that passes somewhere, once."""
        return (
            torch.cat(self.tokens[: self.length()] if self.positional else self.tokens[:1]).unique()
            if self.length()
            else self.nearest[:0]
        )
