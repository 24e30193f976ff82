"""How far a simulated update is from the observed one, as small exchangeable parts. Must not know optimizers.

Every objective takes a mapping of candidate updates (dense, or as factors) and returns one value per restart; it is
scaled so that candidates of any model live on comparable numbers: 0 is a perfect match, about 1 is no match.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.client.outer_products import FactoredMatrix, Simulated

_TINY = torch.finfo(torch.float32).tiny


class Target(dict[str, Tensor]):
    """The tensors to be matched with their sizes, which are the same in every iteration and so are taken once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.squares = {name: float(tensor.square().sum()) for name, tensor in tensors.items()}
        self.absolutes = {name: float(tensor.abs().sum()) for name, tensor in tensors.items()}

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Target:
        return tensors if isinstance(tensors, Target) else Target(tensors)


class Objective(ABC):
    """A distance between updates."""

    @abstractmethod
    def __call__(self, simulated: Simulated, observed: Mapping[str, Tensor]) -> Float[Tensor, " restarts"]:
        """Compares the tensors that ``simulated`` names; both hold the same shapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance(Objective):
    """‖g' − g‖₂² / ‖g‖₂² + l1·‖g' − g‖₁ / ‖g‖₁ over all tensors together.

    Source: l1 = 0 is DLG (Zhu et al. 2019); l1 > 0 is TAG (Deng et al. 2021). Deviations: each term is divided by what
        no match would give, so that the balance of the two does not depend on the scale of the loss or of the head.
    """

    l1: float = 0.0

    def __call__(self, simulated: Simulated, observed: Mapping[str, Tensor]) -> Float[Tensor, " restarts"]:
        factors, mine, theirs = _split(simulated, observed)
        square = _square(observed, simulated)
        l1 = self.l1 * square / max(_absolute(observed, simulated), _TINY)
        residual = mine - theirs
        total = residual.square().sum(1)
        if l1:
            total = total + l1 * residual.abs().sum(1)
        for part, target in factors:
            total = total + part.distance(target, l1)
        return total / square


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine(Objective):
    """1 − ⟨g', g⟩ / (‖g'‖ ‖g‖) over all tensors together: blind to scale, hence to clipping.

    Source: Geiping et al. 2020 ("Inverting Gradients").
    """

    def __call__(self, simulated: Simulated, observed: Mapping[str, Tensor]) -> Float[Tensor, " restarts"]:
        factors, mine, theirs = _split(simulated, observed)
        inner, square = (mine * theirs).sum(1), mine.square().sum(1)
        for part, target in factors:
            inner, square = inner + part.inner(target), square + part.square()
        norms = (square * _square(observed, simulated)).clamp_min(_TINY).sqrt()
        return 1.0 - inner / norms


def _split(
    simulated: Simulated, observed: Mapping[str, Tensor]
) -> tuple[list[tuple[FactoredMatrix, Tensor]], Float[Tensor, "restarts entries"], Float[Tensor, " entries"]]:
    """The factored parts with their targets, and all dense parts as one vector: many small tensors cost one operation."""
    factors: list[tuple[FactoredMatrix, Tensor]] = []
    mine: list[Tensor] = []
    theirs: list[Tensor] = []
    for name, part in simulated.items():
        if isinstance(part, FactoredMatrix):
            factors.append((part, observed[name]))
        else:
            mine.append(part.flatten(1))
            theirs.append(observed[name].flatten())
    if not mine:
        empty = torch.zeros(factors[0][0].left.shape[0], 0)
        return factors, empty, empty[0]
    return factors, torch.cat(mine, 1), torch.cat(theirs)


def _square(observed: Mapping[str, Tensor], simulated: Simulated) -> float:
    target = Target.of(observed)
    return max(sum(target.squares[name] for name in simulated), _TINY)


def _absolute(observed: Mapping[str, Tensor], simulated: Simulated) -> float:
    target = Target.of(observed)
    return sum(target.absolutes[name] for name in simulated)
