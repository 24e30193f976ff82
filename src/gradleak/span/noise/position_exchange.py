"""Why: noise that leaves a token's row visible may hide where it stands, in the tables as in the first attention; both together
tell more. Tokens change places one against all others until no change makes the gradients likelier. Must not know sequences.

With all tokens at their places the first attention's gradient Y is explained up to ‖Y‖² − ‖P Y‖², P onto the span of their inputs
(the error signals are free), and the position table up to Σ_p ‖dP_p − Σ_v dE_v‖². Token v at another place changes the first by

    T(v, p) − T(v, now),     T(v, p) = ‖Yᵀ x‖² / ‖x‖²,  x its input at p outside the inputs of all other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.subspace.frames import frame_of, outside
from gradleak.span.likelihood.energy_test import DEPENDENT

_ROUNDS = 60
_ROUNDING = 1e-13


@dataclass(frozen=True, kw_only=True, slots=True)
class TableGradients:
    """The tables' gradients, in units of their noise together.

    Attributes:
        rows: of the tokens; places: of the positions.
    """

    rows: Float[Tensor, "tokens model"]
    places: Float[Tensor, "positions model"]

    def misfit(self, place: Int64[Tensor, " tokens"]) -> Float[Tensor, "positions model"]:
        return self.places.index_add(0, place, self.rows, alpha=-1.0)

    def gains(self, place: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens positions"]:
        """By how much a token's move lowers the squared misfit."""
        left = self.misfit(place)
        along = self.rows @ left.T
        size = self.rows.square().sum(dim=1)
        here = along.gather(1, place.unsqueeze(1))
        gained = 2 * (along - here) - 2 * size.unsqueeze(1)
        return gained.scatter(1, place.unsqueeze(1), 0.0)


def swap_positions(
    inputs: Float[Tensor, "positions tokens features"],
    gradient: Float[Tensor, "features columns"],
    tables: TableGradients,
    place: Int64[Tensor, " tokens"],
) -> Int64[Tensor, " tokens"]:
    """The place of every token, from ``place`` on by moves that raise the likelihood; many at once while that works.

    Args:
        inputs: unit input of every token at every position.
        gradient: in units of its noise.
    """
    return _Seen.of(inputs, gradient, tables).climb(place)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """All inputs and the gradient's products, in coordinates of the space that the inputs span."""

    inputs: Float[Tensor, "positions tokens dimensions"]
    products: Float[Tensor, "dimensions dimensions"]
    tables: TableGradients

    @staticmethod
    def of(inputs: Tensor, gradient: Tensor, tables: TableGradients) -> _Seen:
        rows = inputs.flatten(0, 1)
        basis = frame_of(rows, cut=DEPENDENT, relative=True)
        shown = basis.T @ gradient
        return _Seen(inputs=inputs @ basis, products=shown @ shown.T, tables=tables)

    def climb(self, place: Tensor) -> Tensor:
        """Places that no single move makes likelier."""
        many, best, gains = len(place), *self.weigh(place)
        for _ in range(_ROUNDS):
            value, target = gains.max(dim=1)
            order = value.argsort(descending=True)
            movers = order[value[order] > 0][:many]
            if not len(movers):
                break
            moved = place.index_copy(0, movers, target[movers])
            likelihood, after = self.weigh(moved)
            if likelihood > best:
                place, best, gains = moved, likelihood, after
            elif len(movers) == 1:
                break
            else:
                many = max(1, len(movers) // 4)
        return place

    def weigh(self, place: Int64[Tensor, " tokens"]) -> tuple[float, Float[Tensor, "tokens positions"]]:
        """What the places explain of both, in units of noise, and what each single move would add."""
        inputs, products, tables = self.inputs, self.products, self.tables
        now = inputs[place, torch.arange(len(place))]
        values, vectors = torch.linalg.eigh(now @ now.T)
        values = values.clamp(min=_ROUNDING * float(values[-1]))
        frame = now.T @ (vectors / values.sqrt())
        own = torch.nn.functional.normalize(((vectors / values) @ vectors.T) @ now, dim=1)
        shown = own @ products
        energy = (shown * own).sum(dim=1)
        rest = outside(inputs, frame)
        along = torch.einsum("ptf,tf->tp", inputs, own)
        size = rest.square().sum(dim=2).T
        held = ((rest @ products) * rest).sum(dim=2).T
        mixed = torch.einsum("ptf,tf->tp", rest, shown)
        strength = (held + 2 * along * mixed + along.square() * energy.unsqueeze(1)) / (size + along.square())
        explained = float(((products @ frame) * frame).sum()) - float(tables.misfit(place).square().sum())
        return explained, strength - energy.unsqueeze(1) + tables.gains(place)
