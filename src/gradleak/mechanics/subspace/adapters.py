"""A client that trains low-rank adapters shares no gradient of a weight, only of two thin factors. What the two tell
about the layer's input x is brought here into the form in which a full gradient tells it: a space that holds every x.

    y = W x + s B A x,   δ_t = dL/dy_t          A: [rank features], B: [outputs rank]

    dL/dA = s Σ_t (Bᵀδ_t) x_tᵀ                  rows in span{x_t}; zero at the usual start, B = 0
    dL/dB = s Σ_t δ_t (A x_t)ᵀ                  rows in span{A x_t}, inside rank dimensions only

*Once B has moved*, the rows of dL/dA of all adapters with one input stack to Σ_m r_m sums of the inputs: with no more
distinct inputs than that they span the inputs exactly. *At B = 0* adapter m tells n inputs apart only in its own r_m
numbers: with C_m the directions that its space leaves free, every input satisfies

    C_mᵀ A_m x = 0,       Σ_m (r_m − n) linear conditions,

which are together the complement of a space that holds the inputs. So n < r_m is needed there, and n ≤ Σ_m r_m later.

Must not know attacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.subspace.frames import complement
from gradleak.mechanics.subspace.noise_level import Noise
from gradleak.mechanics.subspace.subspace import Subspace, thin_space
from gradleak.models import Adapter, LinearMap


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """Gradients of adapters' factors as they were released, and what is known of their errors.

    Attributes:
        noise_std: standard deviation per entry that is known to sit on a tensor, by parameter name.
        summands: number of rows that each entry sums over.
    """

    update: Mapping[str, Tensor]
    noise_std: Callable[[str], Noise]
    summands: int

    def holds(self, each: LinearMap) -> bool:
        return each.weight in self.update and bool(self.update[each.weight].any())

    def space(self, maps: Sequence[LinearMap]) -> Subspace:
        """The column space of the gradients of maps that read one input."""
        return thin_space(
            [each.as_matrix(self.update[each.weight]).T for each in maps],
            noise_std=[self.noise_std(each.weight) for each in maps],
            summands=self.summands,
        )


def adapter_space(
    shared: Shared, adapters: Sequence[Adapter], value: Callable[[str], Tensor]
) -> tuple[Subspace, tuple[str, ...]] | None:
    """The space that the inputs of adapters with one input lie in, with the parameters it was read from.

    The stacked rows of dL/dA, unless those of some dL/dB show more inputs: after one step from B = 0 the first are too small.

    Args:
        value: the model's parameters by name, for A.

    Returns:
        None if no factor was shared, or as many inputs as the rank fill every sketch of them.
    """
    downs = [a.down for a in adapters if shared.holds(a.down)]
    stacked = shared.space(downs) if downs else None
    sketches = [_Sketch.of(shared, a, value) for a in adapters if shared.holds(a.up)]
    most = max((each.space.rank for each in sketches), default=0)
    if stacked is not None and stacked.rank >= most:
        return stacked, tuple(each.weight for each in downs)
    # What shows fewer inputs than another, as queries never show a record's first, says nothing of those it does not show.
    full = [each for each in sketches if each.space.rank == most and each.space.rest]
    return (_joined(full), tuple(each.weight for each in full)) if full else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sketch:
    """The space of A x in A's own coordinates."""

    down: Float[Tensor, "rank features"]
    space: Subspace
    weight: str

    @staticmethod
    def of(shared: Shared, adapter: Adapter, value: Callable[[str], Tensor]) -> _Sketch:
        down = adapter.down.as_matrix(value(adapter.down.weight)).double()
        return _Sketch(down=down, space=shared.space([adapter.up]), weight=adapter.up.weight)


def _joined(sketches: Sequence[_Sketch]) -> Subspace:
    """The space of all x with C_mᵀ A_m x = 0 for every sketch m.

    Noise of size ν_m leaves C_mᵀ A_m x normal, each entry of size ν_m ‖diag(1/σ_m) U_mᵀ A_m x‖. In an orthonormal frame Q of the
    conditions, [A_1ᵀC_1 | A_2ᵀC_2 | …] = Q R, that is multiplied by R⁻¹, here by the root mean square of what R⁻¹ does.
    """
    spaces = [each.space for each in sketches]
    conditions = torch.cat([each.down.T @ each.space.complement for each in sketches], dim=1)
    frame, triangle = torch.linalg.qr(conditions)
    features, rest = conditions.shape
    stretch = float(torch.linalg.inv(triangle).norm()) / math.sqrt(rest)
    noise = math.sqrt(sum(space.rest * space.noise**2 for space in spaces) / rest)
    tilts = [
        (each.down.T @ (each.space.basis / each.space.singular)) * (each.space.noise * math.sqrt(each.space.rest))
        for each in sketches
    ]
    tilt = torch.cat(tilts, dim=1) * (stretch / (noise * math.sqrt(rest)))
    # A member has nothing along the conditions, so only what is outside them counts.
    tilt = tilt - frame @ (frame.T @ tilt)
    directions, sizes, _ = torch.linalg.svd(tilt, full_matrices=False)
    known = torch.cat((frame, directions), dim=1)
    others = complement(known)
    return Subspace(
        basis=torch.cat((directions, others), dim=1),
        singular=torch.cat((1.0 / sizes, sizes.new_full((features - known.shape[1],), math.inf))),
        spectrum=torch.cat([space.spectrum for space in spaces]),
        noise=noise,
        precision=max(space.precision for space in spaces),
        edge=max(space.edge for space in spaces),
        inputs=spaces[0].rank,
    )
