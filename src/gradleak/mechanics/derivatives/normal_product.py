"""Jᵀ J of a simulated update is needed in products only, and the weight-sized part of those products can be left out:
with a gradient in factors, G = Σ_t l_t r_tᵀ, a tangent is dG = Σ_t dl_t r_tᵀ + l_t dr_tᵀ, and Jᵀ(dG) needs dG r_t and
dGᵀ l_t only, which are sums over pairs of tokens. One product therefore costs a pass through the activations, for all
restarts together, whatever the model's width. Must not know what is simulated or why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradleak.mechanics.client.outer_products import FactoredMatrix, Simulated


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalProduct:
    """v → Jᵀ J v at one point, J the derivative of the simulated update in the leaves.

    Attributes:
        leaves: what is differentiated in; simulated: the update as a function of them, with its graph.
        factors: the tensors that make up the update and move with the leaves; pulled: their adjoint applied to
            ``cotangents``, attached to those: a backward pass through it is the forward product.
    """

    leaves: tuple[Tensor, ...]
    simulated: Simulated
    factors: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]
    pulled: tuple[Tensor, ...]

    @staticmethod
    def of(leaves: Sequence[Tensor], simulated: Simulated) -> NormalProduct:
        """Keeps what every product shares: one backward pass that can itself be differentiated."""
        with torch.enable_grad():
            factors = [factor for part in simulated.values() for factor in _tensors(part) if factor.requires_grad]
            cotangents = [torch.zeros_like(factor).requires_grad_() for factor in factors]
            pulled = torch.autograd.grad(
                factors, list(leaves), cotangents, create_graph=True, allow_unused=True, materialize_grads=True
            )
        return NormalProduct(
            leaves=tuple(leaves),
            simulated=simulated,
            factors=tuple(factors),
            cotangents=tuple(cotangents),
            pulled=pulled,
        )

    def __call__(self, directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Jᵀ J v, leaf by leaf, for ``directions`` shaped like the leaves."""
        attached = [(p, d) for p, d in zip(self.pulled, directions, strict=True) if p.requires_grad]
        tangents = torch.autograd.grad(
            [p for p, _ in attached],
            self.cotangents,
            [d for _, d in attached],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        by_factor = {id(factor): tangent for factor, tangent in zip(self.factors, tangents, strict=True)}
        weights: dict[int, Tensor] = {}
        for part in self.simulated.values():
            _contract(part, by_factor, weights)
        return torch.autograd.grad(
            self.factors,
            self.leaves,
            [weights[id(factor)] for factor in self.factors],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )


def _tensors(part: Tensor | FactoredMatrix) -> tuple[Tensor, ...]:
    return (part.left, part.right) if isinstance(part, FactoredMatrix) else (part,)


def _contract(part: Tensor | FactoredMatrix, tangents: Mapping[int, Tensor], weights: dict[int, Tensor]) -> None:
    """Adds the adjoint of "factors to update" applied to the update's tangent, factor by factor."""
    if isinstance(part, Tensor):
        if id(part) in tangents:
            weights[id(part)] = weights.get(id(part), 0) + tangents[id(part)]
        return
    left, right = part.left.detach(), part.right.detach()
    d_left, d_right = (tangents.get(id(part.left)), tangents.get(id(part.right)))
    to_left, to_right = torch.zeros_like(left), torch.zeros_like(right)
    if d_left is not None:
        # dG = Σ dl_t r_tᵀ:  dG r_s = Σ_t (r_t · r_s) dl_t,  dGᵀ l_s = Σ_t (dl_t · l_s) r_t.
        to_left = to_left + (right @ right.mT) @ d_left
        to_right = to_right + (left @ d_left.mT) @ right
    if d_right is not None:
        to_left = to_left + (right @ d_right.mT) @ left
        to_right = to_right + (left @ left.mT) @ d_right
    for factor, weight in ((part.left, to_left), (part.right, to_right)):
        if id(factor) in tangents:
            weights[id(factor)] = weights.get(id(factor), 0) + weight
