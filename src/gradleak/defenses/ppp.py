"""The weakness of a bottleneck is the layers below it, whose gradients hardly depend on the draw. Partial perturbation
adds noise to just those. Must not know which bottleneck it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from gradleak.core.errors import ModelError, SpecError
from gradleak.core.stage import Client, ClientStage, ModelStage, Stage, State
from gradleak.core.update import Update
from gradleak.defenses._tensors import require, rms
from gradleak.models import Subject
from gradleak.models.running.layer_order import parameters_above
from gradleak.models.running.noise_inputs import noisy_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class PPP(ClientStage):
    """Partial perturbation: Gaussian noise on the tensors below a bottleneck. Write ``precode()+ppp(relative_std=1)``.

        released_l = u_l + N(0, (relative_std · rms(u_l))²)   for l below the first random layer of the model

    Args:
        relative_std: standard deviation in units of each tensor's root mean square, above 0.

    Raises:
        SpecError: if ``relative_std`` is not positive, or no stage before it changes the model; when run, ``ModelError`` if
            the model has no random layer.

    Guarantees:
        Tensors of the bottleneck and behind it are shared as they were. No differential privacy: nothing is clipped.
        The surrogate is the identity, the mean of the release.

    Source: arXiv 2208.04767 by the notes, which could not check its grid of standard deviations.
    """

    summary: ClassVar[str] = (
        "Adds noise to the tensors below a random bottleneck only (needs precode or cvb before it)."
    )
    behind: ClassVar[str] = "precode()"

    relative_std: float
    placed: bool = field(default=False, init=False, repr=False, compare=False)
    """After ``bind``: a bottleneck stood before it, which a training deploys once and then leaves out of its rounds."""

    def __post_init__(self) -> None:
        require(self.relative_std > 0, "ppp", "relative_std", self.relative_std, "above 0")

    def bind(self, preceding: tuple[Stage, ...]) -> Self:
        if self.placed:
            return self
        if not any(isinstance(stage, ModelStage) for stage in preceding):
            raise SpecError(
                f"ppp puts noise below a random bottleneck, and none stands before it. Write {self.behind}+ppp(...), or "
                "gaussian(...) for noise everywhere."
            )
        bound = replace(self)
        object.__setattr__(bound, "placed", True)
        return bound

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        kept = _from_bottleneck_on(client.trainer.subject)

        def disturb(name: str, tensor: Tensor) -> Tensor:
            if name in kept:
                return tensor
            noise = torch.randn(tensor.shape, generator=rng)
            return tensor + (self.relative_std * rms(tensor) * noise).to(tensor)

        return update.map(disturb), {}

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return simulated

    def surrogate_is_identity(self) -> bool:
        return True


def _from_bottleneck_on(subject: Subject) -> frozenset[str]:
    layers = noisy_layers(subject.module)
    if not layers:
        raise ModelError(
            f"ppp: {subject.name} has no random layer, below which noise would go. Write precode()+ppp(...), or gaussian(...)."
        )
    return frozenset().union(*(parameters_above(subject, path) for path in layers))
