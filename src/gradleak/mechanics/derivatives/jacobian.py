"""What an update says about the data is, to first order, the Jacobian of the map from data to update. It is never
formed for a real model: everything is done with its two products. Must not know noise, bounds or attacks.

For an update g(x):  J v = d/dt g(x + t v) at 0,  Jᵀ r = ∇_x ⟨g(x), r⟩.  J has as many columns as the data has entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import UsageError
from gradleak.mechanics.attention.softmax import Gradient, Heads, HeadsGradient, Point
from gradleak.mechanics.client.trainer import ClientTrainer

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Jacobian:
    """A linear map from data directions to update directions, by its products.

    Attributes:
        shape: of the data; update: the update at the point, detached, which also fixes names and shapes of its space.
        forward: J v for v of ``shape``; adjoint: Jᵀ r for r like ``update``.
    """

    shape: tuple[int, ...]
    update: Tensors
    forward: Callable[[Tensor], Tensors]
    adjoint: Callable[[Tensors], Tensor]

    @property
    def unknowns(self) -> int:
        return math.prod(self.shape)

    def normal(self, direction: Tensor) -> Tensor:
        """JᵀJ v."""
        return self.adjoint(self.forward(direction))

    def dense(self) -> Float[Tensor, "entries unknowns"]:
        """The matrix, one forward product per unknown: for small problems and for tests."""
        first = next(iter(self.update.values()))
        basis = torch.eye(self.unknowns, dtype=first.dtype, device=first.device).reshape(-1, *self.shape)
        return torch.stack([flatten(self.forward(direction)) for direction in basis], 1)


def flatten(tensors: Tensors) -> Float[Tensor, " entries"]:
    """All entries in the mapping's order."""
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def linearize(function: Callable[[Tensor], Tensors], at: Tensor) -> Jacobian:
    """The Jacobian of any map from one tensor to named tensors that autograd can differentiate.

    The adjoint is one backward pass over a kept graph. The adjoint is linear in r, so the forward product is *its*
    adjoint: a backward pass through the backward pass, which needs no forward-mode rule of any layer.

    Args:
        at: the data, floating point. What ``function`` returns must be attached to it; tensors that do not depend on
            it stay zero.
    """
    point = at.detach().clone().requires_grad_()
    with torch.enable_grad():
        update = dict(function(point))
        moving = {name: tensor for name, tensor in update.items() if tensor.requires_grad}
        if not moving:
            raise UsageError("No tensor of the update depends on the data, so there is nothing to linearize.")
        cotangents = {name: torch.zeros_like(tensor).requires_grad_() for name, tensor in moving.items()}
        (pulled,) = torch.autograd.grad(
            list(moving.values()),
            point,
            list(cotangents.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )

    def adjoint(direction: Tensors) -> Tensor:
        weights = [direction[name].to(tensor.dtype).reshape(tensor.shape) for name, tensor in moving.items()]
        (gradient,) = torch.autograd.grad(
            list(moving.values()), point, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return gradient

    def forward(direction: Tensor) -> Tensors:
        zero = {name: torch.zeros_like(tensor) for name, tensor in update.items()}
        if not pulled.requires_grad:
            return zero
        tangents = torch.autograd.grad(
            pulled,
            list(cotangents.values()),
            direction.to(point.dtype).reshape(point.shape),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return zero | dict(zip(cotangents, tangents, strict=True))

    return Jacobian(
        shape=tuple(at.shape),
        update={name: tensor.detach() for name, tensor in update.items()},
        forward=forward,
        adjoint=adjoint,
    )


def update_jacobian(
    trainer: ClientTrainer,
    inputs: Float[Tensor, "batch ..."],
    targets: Float[Tensor, "batch ..."],
    mask: Tensor,
    *,
    names: tuple[str, ...] | None = None,
) -> Jacobian:
    """The Jacobian of a client's update in its embeddings or pixels, whatever the client trains and shares.

    Args:
        inputs: embeddings ``[batch seq model]`` or pixels; targets, mask: as ``ClientTrainer.replay`` takes them.
        names: the tensors that are shared; all if None. The token embedding's input side is no function of embeddings.
    """
    unknown = set(names or ()) - set(trainer.names())
    if unknown:
        raise UsageError(f"{sorted(unknown)[0]!r} is not a trained parameter, so it is not part of the update.")

    def function(x: Tensor) -> Tensors:
        update = trainer.replay(x, targets, mask)
        return update if names is None else {name: update[name] for name in names}

    return linearize(function, inputs)


def attention_jacobian(point: Point, heads: Heads | None = None) -> Jacobian:
    """The Jacobian of bare attention in closed form, targets known: of W and U, or of Q, K, V and O if split."""

    def named(gradient: Gradient) -> Tensors:
        if heads is None:
            return {"scores": gradient.scores, "values": gradient.values}
        split = heads.split(gradient)
        return {"query": split.query, "key": split.key, "value": split.value, "output": split.output}

    def adjoint(direction: Tensors) -> Tensor:
        if heads is None:
            return point.vjp(Gradient(scores=direction["scores"], values=direction["values"]))[0]
        return point.vjp(heads.join(HeadsGradient(**direction)))[0]

    return Jacobian(
        shape=tuple(point.inputs.shape),
        update=named(point.gradient()),
        forward=lambda direction: named(point.jvp(direction)),
        adjoint=adjoint,
    )
