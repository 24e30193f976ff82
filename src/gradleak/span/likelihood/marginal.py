"""Why: to set what an update says of whole records against what a language model says of them, both must be in nats. Noise leaves a few
directions of a gradient visible; records are likely as far as their inputs explain these. Must not know how records are found, or priors.

With Y = Σ xᵢ δᵢᵀ + Z the gradient in units of its noise (d features, m columns), a singular value s above the edge √d + √m comes from a
signal of strength θ², and the direction u that is seen keeps the share c² of it:

    s² = (θ² + m)(θ² + d) / θ²,        c² = (θ⁴ − m d) / (θ² (θ² + d)).

The δ are free, so records X leave of each direction what is outside their span, and with P_X the projection onto it

    log p(Y | X) = ½ Σ_k θ_k² c_k² ‖P_X u_k‖² + constant,

summed over the places of the model that are read. Every row of X is free to fit the noise of each direction, which is worth Σ_k c_k² (Akaike):
only records of different lengths feel it.

Source: Benaych-Georges and Nadakuditi, J. Multivariate Anal. 111 (2012), for θ and c; the sum is ours. It is held against the truth by
    ``tests/agreement/test_span_prior.py``: with s² in the place of θ² c² claims are too bold where noise is strong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks, linear_inputs
from gradleak.mechanics.subspace.frames import frame_of, outside, outside_each
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood

_DEPENDENT = 1e-6
"""A squared length below which nothing of a unit row is its own."""
_BUFFERS = 12
"""Activations that a model holds per entry of its stream, roughly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signal:
    """What stands out of the noise at one place.

    Attributes:
        directions: θ_k c_k u_k.
        price: what a row gains by noise alone.
    """

    path: str
    directions: Float[Tensor, "features directions"]
    price: float

    @staticmethod
    def of(place: GradientLikelihood) -> Signal:
        gradient = place.gradient.double()
        features, columns = gradient.shape
        left, size, _ = torch.linalg.svd(gradient, full_matrices=False)
        seen = size > math.sqrt(features) + math.sqrt(columns)
        spread = size[seen].square() - features - columns
        strength = (spread + (spread.square() - 4.0 * features * columns).clamp(min=0).sqrt()) / 2
        share = (strength.square() - features * columns) / (strength * (strength + features))
        return Signal(
            path=place.path,
            directions=left[:, seen] * (strength * share.clamp(min=0)).sqrt(),
            price=float(share.clamp(min=0).sum()),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """log p(Y | records), up to a constant."""

    signals: tuple[Signal, ...]
    model: Model

    def rows(self, ids: Int64[Tensor, "sentences length"]) -> list[Float[Tensor, "sentences length features"]]:
        """Inputs of unit length at every place."""
        if not self.signals:
            return []
        paths = [signal.path for signal in self.signals]
        parts: list[list[Tensor]] = [[] for _ in paths]
        width = max(signal.directions.shape[0] for signal in self.signals)
        for part in chunks(len(ids), ids.shape[1] * width * _BUFFERS):
            seen = linear_inputs(self.model.subject, paths, ids[part], parameters=self.model.parameters)
            for store, path in zip(parts, paths, strict=True):
                store.append(torch.nn.functional.normalize(seen[path].double(), dim=-1))
        return [torch.cat(store) for store in parts]

    def split(self, count: int) -> tuple[Evidence, Evidence]:
        """The first ``count`` places, and the others."""
        return replace(self, signals=self.signals[:count]), replace(self, signals=self.signals[count:])

    def given(self, records: Sequence[Sequence[Float[Tensor, "length features"]]]) -> tuple[Conditioned, ...]:
        """What is left to explain beside these records (each one's rows at every place)."""
        return tuple(Conditioned.of(signal, [rows[i] for rows in records]) for i, signal in enumerate(self.signals))

    def together(self, records: Sequence[Sequence[Float[Tensor, "length features"]]]) -> float:
        """All records at once."""
        joined = [torch.cat([rows[i] for rows in records]).unsqueeze(0) for i in range(len(self.signals))]
        return sum(float(left.score(rows)) for left, rows in zip(self.given(()), joined, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioned:
    """One place, and an orthonormal basis of what the other records explain there."""

    signal: Signal
    frame: Float[Tensor, "features rank"]

    @staticmethod
    def of(signal: Signal, others: Sequence[Float[Tensor, "length features"]]) -> Conditioned:
        rows = torch.cat(list(others)) if others else signal.directions.new_zeros(0, signal.directions.shape[0])
        return Conditioned(signal=signal, frame=frame_of(rows, cut=_DEPENDENT))

    def score(self, rows: Float[Tensor, "sentences length features"]) -> Float[Tensor, " sentences"]:
        """What these records add to the log-likelihood."""
        own = outside(rows, self.frame)
        values, vectors = torch.linalg.eigh(own @ own.transpose(1, 2))
        kept = values > _DEPENDENT
        shown = vectors.transpose(1, 2) @ (own @ self.signal.directions)
        energy = shown.square().sum(2) / values.clamp(min=_DEPENDENT)
        return ((energy / 2 - self.signal.price) * kept).sum(1)

    def extend(
        self, row: Float[Tensor, "prefixes options features"], own: Float[Tensor, "prefixes before features"]
    ) -> tuple[Float[Tensor, "prefixes options"], Float[Tensor, "prefixes options features"]]:
        """What one more row adds beside orthonormal rows ``own``, and its direction outside them (zero where there is none)."""
        rest = outside_each(outside(row, self.frame), own)
        size = rest.square().sum(2)
        kept = size > _DEPENDENT
        unit = torch.where(kept.unsqueeze(2), rest / size.clamp(min=_DEPENDENT).sqrt().unsqueeze(2), 0.0)
        energy = (unit @ self.signal.directions).square().sum(2)
        return (energy / 2 - self.signal.price) * kept, unit
