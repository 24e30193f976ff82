"""Why: how well a simulated release explains the observed one, in units of the noise that the known stages add. Must not
know any attack or defense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradleak.core.stage import Stage

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrepancy:
    """Σ_t w_t ‖s_t − u_t‖² of a simulated release s from the observed release u.

    Attributes:
        observed: u by name; weights: w_t, 1/σ_t² under noise of deviation σ_t, else 1/‖u_t‖².
        cosine: 1 − cos(s, u) over all tensors together in the place of it.
    """

    observed: Mapping[str, Tensor]
    weights: Mapping[str, float]
    cosine: bool

    @staticmethod
    def of(observed: Mapping[str, Tensor], stages: tuple[Stage, ...], *, cosine: bool) -> Discrepancy:
        stds = {name: math.hypot(*(s.noise_std(tensor) for s in stages), 0.0) for name, tensor in observed.items()}
        if any(std > 0 for std in stds.values()):
            # A tensor that gets no noise among others that do is known to its rounding, and would outweigh them all;
            # its own size is then the unit, as it is for every tensor where no stage adds noise.
            weights = {name: std**-2 if std > 0 else _inverse_square(observed[name]) for name, std in stds.items()}
        else:
            weights = {name: _inverse_square(tensor) for name, tensor in observed.items()}
        return Discrepancy(observed=observed, weights=weights, cosine=cosine)

    def __call__(self, simulated: Mapping[str, Tensor], *, free_scale: bool = False) -> float:
        """The value for one simulated release.

        Args:
            free_scale: take the best multiple of ``simulated``.
        """
        inner, mine, theirs = 0.0, 0.0, 0.0
        for name, tensor in self.observed.items():
            weight = 1.0 if self.cosine else self.weights[name]
            s, u = simulated[name].double().flatten(), tensor.double().flatten()
            inner, mine, theirs = (
                inner + weight * float(s @ u),
                mine + weight * float(s @ s),
                theirs + weight * float(u @ u),
            )
        if self.cosine:
            return 1.0 - inner / max(math.sqrt(mine * theirs), _TINY)
        if free_scale:
            return theirs - max(inner, 0.0) ** 2 / max(mine, _TINY)
        return mine - 2.0 * inner + theirs


def _inverse_square(tensor: Tensor) -> float:
    square = float(tensor.double().square().sum())
    return 1.0 / square if square > 0 else 0.0
