"""The membership test through the law of the first input: linear in token and position up to one scale per pair.
Must not know which candidates are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from scipy.stats import f as ratio_of_variances
from torch import Tensor

from gradleak.mechanics.probing.first_input import FirstInput
from gradleak.mechanics.probing.probe import chunks
from gradleak.mechanics.subspace.subspace import Subspace

_SKETCH_COLUMNS, _SCREEN_COLUMNS = 32, 8
"""Directions outside the space that a pair is tested with, and those that the whole vocabulary meets first."""


_TILT_COLUMNS = 16


_LENGTH_COLUMNS = 8


_MISSED = 1e-6
"""Chance that a pair half way between members and others is screened out; members are far less likely to be."""


_CANCELLATION = 4e-3
"""What float32 leaves of a token's and a position's part that cancel: the root of 128 roundings of their squares."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FactoredTest:
    """The test through the law of the first input: linear in token and position up to one scale per pair.

    Attributes:
        outside: directions outside the space, orthogonal to the law's offset.
        tilt: random mixture of basis directions over their singular values; its length is a member's tilt.
    """

    law: FirstInput
    space: Subspace
    outside: Float[Tensor, "features columns"]
    tilt: Float[Tensor, "features columns"]
    length: Float[Tensor, "features columns"]

    @staticmethod
    def of(law: FirstInput, space: Subspace, rng: torch.Generator) -> FactoredTest:
        weighted = space.basis / space.singular
        mixer = torch.randn(space.rank, _TILT_COLUMNS, generator=rng, dtype=torch.float64) / math.sqrt(_TILT_COLUMNS)
        length = torch.randn(space.features, _LENGTH_COLUMNS, generator=rng, dtype=torch.float64)
        return FactoredTest(
            law=law,
            space=space,
            outside=space.sketch(_SKETCH_COLUMNS, rng, without=law.norm.offset),
            tilt=weighted @ mixer.to(weighted.device),
            length=length.to(weighted.device) / math.sqrt(_LENGTH_COLUMNS),
        )

    @property
    def floats_each(self) -> int:
        return 8 * len(self.law.positions) + self.space.features

    def sharpened(self) -> FactoredTest:
        """The same test with every direction outside the space."""
        rng = torch.Generator().manual_seed(0)
        return replace(self, outside=self.space.sketch(self.space.features, rng, without=self.law.norm.offset))

    def judge(self, ids: Int64[Tensor, " tokens"]) -> tuple[Tensor, Tensor]:
        law, norm = self.law, self.law.norm
        token = norm.center(law.scale * law.table[ids].double())
        place = norm.center(law.positions.double())
        gain, offset = norm.gain.double(), norm.offset.double()
        square = _pair_squares(token, place)
        sigma = (square / token.shape[1]).sqrt() if norm.normalized else torch.ones_like(square)
        token, place = gain * token, gain * place
        along = (token @ offset).unsqueeze(1) + place @ offset
        length = (_pair_squares(token, place) + 2 * sigma * along + (sigma * offset.norm()) ** 2).clamp(min=0).sqrt()
        beyond = _pair_squares(token @ self.outside, place @ self.outside).sqrt()
        tilted = torch.zeros_like(square)
        for column in self.tilt.T:
            tilted += ((token @ column).unsqueeze(1) + place @ column + sigma * (offset @ column)).square()
        known = length > 0
        length = length.clamp(min=1e-300)
        expected = self.space.noise * math.sqrt(self.space.rest) * tilted.sqrt() / length
        return torch.where(known, beyond / length, 1.0), expected.hypot(expected.new_tensor(self.space.precision))

    def weigh(self, ids: Int64[Tensor, " tokens"], root: Float[Tensor, "features columns"]) -> Tensor:
        law, norm = self.law, self.law.norm
        token, place = norm.center(law.scale * law.table[ids]), norm.center(law.positions)
        sigma = (_pair_squares(token, place) / token.shape[1]).sqrt() if norm.normalized else token.new_ones(())
        token, place = norm.gain * token, norm.gain * place

        def square(columns: Tensor | None) -> Tensor:
            one, other, offset = (x if columns is None else x @ columns for x in (token, place, norm.offset))
            along = (one @ offset).unsqueeze(1) + other @ offset
            return _pair_squares(one, other) + 2 * sigma * along + sigma**2 * offset.square().sum()

        return square(root.to(token.dtype)) / square(None).clamp(min=1e-30)

    def screen(self, below: float) -> Int64[Tensor, " tokens"]:
        law = self.law
        outside, lengths, columns = self._screening()
        error = float(ratio_of_variances.isf(_MISSED, columns, _LENGTH_COLUMNS))
        margin = max(error * below**2, _CANCELLATION**2)
        # ‖outside‖² − margin · ‖length‖² of token + position is one product of both.
        weight = outside.new_tensor([1.0] * columns + [-margin] * _LENGTH_COLUMNS)
        fold = torch.cat((outside, lengths), dim=1)
        place = law.positions.to(fold.dtype) @ fold
        along, of_place = 2.0 * (weight * place).T, place.square() @ weight
        found: list[Tensor] = []
        for part in chunks(len(law.table), fold.shape[1] + len(place)):
            token = law.scale * (law.table[part] @ fold)
            least = torch.addmm(of_place, token, along).amin(dim=1) + token.square() @ weight
            found.append((least < 0).nonzero().flatten() + part.start)
        return torch.cat(found)

    def nearest(self, places: Int64[Tensor, " places"]) -> Int64[Tensor, " places"]:
        law = self.law
        outside, lengths, columns = self._screening()
        fold = torch.cat((outside, lengths), dim=1)
        place = law.positions[places].to(fold.dtype) @ fold
        nearest, least = torch.zeros_like(places), fold.new_full((len(places),), math.inf)
        for part in chunks(len(law.table), fold.shape[1] + 4 * len(place)):
            token = law.scale * (law.table[part] @ fold)
            length = _pair_squares(token[:, columns:], place[:, columns:])
            rough = torch.where(length > 0, _pair_squares(token[:, :columns], place[:, :columns]) / length, math.inf)
            values, best = rough.min(dim=0)
            nearest = torch.where(values < least, best + part.start, nearest)
            least = torch.minimum(values, least)
        return nearest

    def _screening(self) -> tuple[Tensor, Tensor, int]:
        """Columns of residual and length, in the table's number format; all directions outside where the test was sharpened."""
        fold, dtype, columns = self.law.norm.fold, self.law.table.dtype, self.outside.shape[1]
        few = _SCREEN_COLUMNS if columns == _SKETCH_COLUMNS else columns
        outside = fold(self.outside[:, :few] * math.sqrt(columns / few)).to(dtype)
        return outside, fold(self.length).to(dtype), few


def _pair_squares(one: Float[Tensor, "tokens columns"], other: Float[Tensor, "positions columns"]) -> Tensor:
    """‖one_i + other_j‖² for all pairs; differences that cancel to rounding count as zero."""
    sums = one.square().sum(1, keepdim=True) + other.square().sum(1)
    return torch.addmm(sums, one, other.T, beta=1.0, alpha=2.0).clamp(min=0)
