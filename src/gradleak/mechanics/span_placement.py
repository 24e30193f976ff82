"""Why: token and position tables sum the same error signals, so which token stands where is a linear question, also with
more tokens than dimensions. Must not know sequences or attention.

    dL/dP_p = Σ_v X[v, p] dL/dE_v,   X[v, p] = 1 if token v stands at position p,   Σ_p X[v, p] = 1

for tokens that occur once. Row by row X is a corner of a simplex; the intersection of simplices and equations is that corner
alone as long as the number of tokens is below about twice the width (half of the directions out of a corner of a box leave
it: Donoho and Tanner's count for bounded vectors). Tokens that occur more often obey it only roughly: their
rows show what is likely, not what is true.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_LIKELY = 0.25
"""A token may stand where its share is at least this part of its largest."""
_STEPS = 400
_CUT = 1e-13
"""Energies below this part of the largest are float32 rounding."""


def place_tokens(
    rows: Float[Tensor, "tokens features"], places: Float[Tensor, "positions features"]
) -> Float[Tensor, "tokens positions"]:
    """The share of each token at each position; by Douglas-Rachford steps between equations and simplices.

    Args:
        rows: gradient of the token table at the tokens that occur.
        places: gradient of the position table.
    """
    table, wanted = rows.double(), places.double()
    values, vectors = torch.linalg.eigh(table.T @ table)
    keep = values > _CUT * values[-1]
    # In coordinates in which the equations are orthonormal a projection is two products.
    root = vectors[:, keep] / values[keep].sqrt()
    equations, right = table @ root, wanted @ root
    point = table.new_full((len(table), len(wanted)), 1.0 / len(wanted))
    for _ in range(_STEPS):
        inside = _to_simplex(point)
        reflected = 2 * inside - point
        reflected = reflected - equations @ (equations.T @ reflected - right.T)
        point = point + reflected - inside
    return _to_simplex(point)


def likely_places(shares: Float[Tensor, "tokens positions"]) -> Bool[Tensor, "tokens positions"]:
    """Where each token may stand: at its likeliest place, and where it has a good part of that share."""
    return shares >= _LIKELY * shares.amax(dim=1, keepdim=True)


def _to_simplex(rows: Float[Tensor, "rows entries"]) -> Float[Tensor, "rows entries"]:
    """The nearest point with entries that are not negative and sum to one, row by row."""
    ordered = rows.sort(dim=1, descending=True).values
    counts = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    surplus = (ordered.cumsum(dim=1) - 1) / counts
    last = (ordered > surplus).sum(dim=1, keepdim=True) - 1
    return (rows - surplus.gather(1, last)).clamp(min=0)
