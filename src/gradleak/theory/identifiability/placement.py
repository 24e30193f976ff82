"""Gradients of the token and position tables are sums of the same error signals, so which token stands where is a linear question.
This is up to how many tokens it has one answer. Must not know updates or attacks.

Each of N tokens (each occurring once) stands at one of P positions: a corner of a simplex. Both tables give dL/dP = Xᵀ dL/dE, that is
(P − 1) d equations, the last position's following from the others. A convex search finds the corner if no direction into all N simplices
solves the equations, which for rows in general position is so up to

    N δ_P < (P − 1) d,     δ_P = E min_t (g_1 − t)² + Σ_{j ≥ 2} max(g_j − t, 0)²,     g standard normal:

the statistical dimension of a corner's cone; the change from always to never is sharp where d is large. δ_2 = 1/2 (a box's corner:
twice as many tokens as equations), and δ_P grows only as log P, so more positions hold more tokens.

Source: Amelunxen, Lotz, McCoy and Tropp, arXiv 1303.6672 (statistical dimension; the formula for this cone is derived here).
"""

from __future__ import annotations

import torch

from gradleak.core.rng import derive

_SAMPLES = 20_000
"""Draws of the normal vector: the standard error of δ_P stays below .02 up to hundreds of positions."""
_HALVINGS = 40
"""Bisections for the minimum over t: the bracket ends at 10⁻¹² of its width."""


def corner_dimension(positions: int) -> float:
    """δ_P, from a fixed sample; its standard error is below .02."""
    g = torch.randn(_SAMPLES, positions, generator=derive(0, "corner", positions), dtype=torch.float64)
    own, others = g[:, :1], g[:, 1:]
    low, high = own.clone(), g.amax(dim=1, keepdim=True)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rising = middle - own > (others - middle).clamp(min=0).sum(dim=1, keepdim=True)
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return float(((own - low).square() + (others - low).clamp(min=0).square().sum(dim=1, keepdim=True)).mean())


def most_placed(width: int, positions: int) -> int:
    """Distinct tokens up to which both tables' gradients determine the place of each; 0 for a single position, where none is asked."""
    if positions < 2:
        return 0
    return int((positions - 1) * width / corner_dimension(positions))
