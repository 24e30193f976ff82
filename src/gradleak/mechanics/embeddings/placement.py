"""Token and position tables sum the same error signals, so which token stands where is a linear question, also with
more tokens than dimensions. Must not know sequences or attention.

    dL/dP_p = Σ_v X[v, p] dL/dE_v,   X[v, p] = 1 if token v stands at position p,   Σ_p X[v, p] = 1

for tokens that occur once. Row by row X is a corner of a simplex; the intersection of simplices and equations is that corner
alone as long as the number of tokens is below about twice the width (half of the directions out of a corner of a box leave
it: Donoho and Tanner's count for bounded vectors). Tokens that occur more often obey it only roughly: their
rows show what is likely, not what is true.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.attack import Clock

_STEPS = 400
"""Steps at most, set by hand; no sweep chose it."""
_CUT = 1e-13
"""Energies below this part of the largest are float32 rounding."""


def place_tokens(
    rows: Float[Tensor, "tokens features"],
    places: Float[Tensor, "positions features"],
    *,
    noise: float = 0.0,
    clock: Clock | None = None,
) -> Float[Tensor, "tokens positions"]:
    """The share of each token at each position; by Douglas-Rachford steps between equations and simplices.

    Args:
        rows: gradient of the token table at the tokens that occur.
        places: gradient of the position table.
        noise: standard deviation per entry of ``rows``; 0 if the equations hold exactly.
        clock: when its time is spent, the shares are as they are.
    """
    table, wanted = rows.double(), places.double()
    values, vectors = torch.linalg.eigh(table.T @ table)
    keep = values > _CUT * values[-1]
    # In coordinates in which the equations are orthonormal a step towards them is two products. Under noise they need not hold,
    # and the step is that of the least squares: short along directions that are not above it.
    edge = noise * (math.sqrt(table.shape[0]) + math.sqrt(table.shape[1]))
    root = vectors[:, keep] / values[keep].sqrt()
    length = values[keep] / (values[keep] + edge**2)
    equations, right = table @ root, wanted @ root
    point = table.new_full((len(table), len(wanted)), 1.0 / len(wanted))
    for _ in range(_STEPS):
        if clock is not None and clock.spent():
            break
        inside = _to_simplex(point)
        reflected = 2 * inside - point
        reflected = reflected - equations @ (length.unsqueeze(1) * (equations.T @ reflected - right.T))
        point = point + reflected - inside
    return _to_simplex(point)


def _to_simplex(rows: Float[Tensor, "rows entries"]) -> Float[Tensor, "rows entries"]:
    """The nearest point with entries that are not negative and sum to one, row by row."""
    ordered = rows.sort(dim=1, descending=True).values
    counts = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    surplus = (ordered.cumsum(dim=1) - 1) / counts
    last = (ordered > surplus).sum(dim=1, keepdim=True) - 1
    return (rows - surplus.gather(1, last)).clamp(min=0)
