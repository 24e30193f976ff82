"""The target model as a probe runs it: with its own parameter values or with others.
Must not know what is read off the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import Subject


class Place(Protocol):
    """Somewhere in the model where an input is taken."""

    @property
    def path(self) -> str:
        """The module whose input it is."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The subject as the probe runs it: with its own or with other parameter values."""

    subject: Subject
    parameters: Mapping[str, Tensor] | None = None

    @property
    def vocab_size(self) -> int:
        return self.subject.anatomy.vocab_size

    def value(self, name: str) -> Tensor:
        """A parameter as the probe runs the model."""
        own = self.subject.module.get_parameter(name).detach()
        return own if self.parameters is None else self.parameters.get(name, own)

    def inputs(
        self, places: Sequence[Place], ids: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> list[Float[Tensor, "batch seq features"]]:
        inputs = linear_inputs(
            self.subject, [place.path for place in places], ids, mask=mask, parameters=self.parameters
        )
        return [inputs[place.path] for place in places]

    def inputs_behind(
        self, padding: int, places: Sequence[Place], ids: Int64[Tensor, "batch seq"]
    ) -> list[Float[Tensor, "batch seq features"]]:
        """The inputs of sequences that begin behind so many positions of padding."""
        if not padding:
            return self.inputs(places, ids)
        padded = torch.nn.functional.pad(ids, (padding, 0))
        mask = torch.arange(padded.shape[1], device=ids.device).expand_as(padded) >= padding
        return [inputs[:, padding:] for inputs in self.inputs(places, padded, mask)]
