"""Recovering the data of a bare attention layer from its gradient, as a least-squares problem with its exact
Jacobian. The reference problem on which attacks and theory can be held to each other. Must not know how it is solved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.attention.softmax import Heads, Point, data_jacobian
from gradleak.mechanics.derivatives.least_squares import DenseLinearized


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionMatching:
    """½ ‖g(X, B) − g*‖² over X (and B, if unknown), for one instance per start.

    Attributes:
        heads: the weights, with a leading axis of starts or none.
        observed: g*, as ``HeadsGradient.flat`` makes it.
        targets: B if known; None makes its entries unknowns too, behind those of X.
        basis: rows that span the tokens: X = Y ``basis``, and Y is searched. None searches all of X.
        collapsed: the gradients of W = Q Kᵀ and U = V O are matched, not those of the four factors.
    """

    heads: Heads
    observed: Float[Tensor, "starts entries"]
    seq: int
    out: int
    targets: Float[Tensor, "starts seq out"] | None = None
    basis: Float[Tensor, "starts width model"] | None = None
    collapsed: bool = False

    @property
    def width(self) -> int:
        return self.heads.query.shape[-2] if self.basis is None else self.basis.shape[-2]

    @property
    def unknowns(self) -> int:
        return self.seq * (self.width + (self.out if self.targets is None else 0))

    def data(self, x: Float[Tensor, "starts unknowns"]) -> tuple[Tensor, Tensor]:
        """(X, B) of a point of the search space."""
        free, rest = x[:, : self.seq * self.width], x[:, self.seq * self.width :]
        inputs = free.reshape(-1, self.seq, self.width)
        inputs = inputs if self.basis is None else inputs @ self.basis
        return inputs, rest.reshape(-1, self.seq, self.out) if self.targets is None else self.targets

    def at(self, x: Float[Tensor, "starts unknowns"]) -> DenseLinearized:
        point = self._point(x)
        jacobian = data_jacobian(point, None if self.collapsed else self.heads, with_targets=self.targets is None)
        if self.basis is not None:
            size = self.seq * self.heads.query.shape[-2]
            by_token = jacobian[..., :size].unflatten(-1, (self.seq, -1)) @ self.basis.mT.unsqueeze(1)
            jacobian = torch.cat((by_token.flatten(-2), jacobian[..., size:]), -1)
        return DenseLinearized.of(self._gap(point), jacobian)

    def value(self, x: Float[Tensor, "starts unknowns"]) -> Float[Tensor, " starts"]:
        return 0.5 * self._gap(self._point(x)).square().sum(1)

    def gradient_of(self, x: Float[Tensor, "starts unknowns"]) -> Float[Tensor, "starts entries"]:
        return self._gap(self._point(x)) + self.observed

    def select(self, index: Tensor) -> AttentionMatching:
        """The problem of some of the starts."""

        def pick(tensor: Tensor, axes: int) -> Tensor:
            return tensor[index] if tensor.ndim > axes else tensor

        h = self.heads
        heads = replace(h, query=pick(h.query, 3), key=pick(h.key, 3), value=pick(h.value, 3), output=pick(h.output, 3))
        return replace(
            self,
            heads=heads,
            observed=self.observed[index],
            targets=None if self.targets is None else pick(self.targets, 2),
            basis=None if self.basis is None else pick(self.basis, 2),
        )

    def _point(self, x: Tensor) -> Point:
        inputs, targets = self.data(x)
        return self.heads.layer().at(inputs, targets)

    def _gap(self, point: Point) -> Tensor:
        gradient = point.gradient()
        return (gradient if self.collapsed else self.heads.split(gradient)).flat() - self.observed
