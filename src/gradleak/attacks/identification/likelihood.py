"""How well a simulated release explains the observed one, in units of the noise that the known stages add. Must not
know any attack or defense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float64).tiny
_NEGLIGIBLE = 1e-5
"""Tensors of less than this share of the largest one's norm hold little but rounding: key biases, whose gradient is zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Discrepancy:
    """Σ_t w_t ‖s_t − u_t‖² of a simulated release s from the observed release u.

    Attributes:
        observed: u by name; weights: w_t, 1/σ_t² under noise of known deviation σ_t, else 1/‖u_t‖², or 0 where u_t is
            negligible beside the other tensors.
        cosine: 1 − cos(s, u) over all tensors together in the place of it.
    """

    observed: Mapping[str, Tensor]
    weights: Mapping[str, float]
    cosine: bool

    @staticmethod
    def of(observed: Mapping[str, Tensor], stds: Mapping[str, float | None], *, cosine: bool) -> Discrepancy:
        """
        Args:
            observed: u by name.
            stds: by name, deviation of the noise per entry; 0 for none, None for noise of unknown size.
        """
        norms = {name: float(tensor.double().norm()) for name, tensor in observed.items()}
        floor = _NEGLIGIBLE * max(norms.values(), default=0.0)
        # A tensor that gets no noise among others that do is known to its rounding, and would outweigh them all; its own
        # size is then the unit, as it is for every tensor where no stage adds noise of a known size.
        sizes = {name: stds[name] or (norm if norm > floor else math.inf) for name, norm in norms.items()}
        return Discrepancy(observed=observed, weights={n: size**-2 for n, size in sizes.items()}, cosine=cosine)

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
