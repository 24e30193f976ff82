"""Additive Gaussian noise, the one defense that can carry a guarantee (after a clip). Must not compute epsilon:
the accountant reads ``gaussian_multiplier`` and decides.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.errors import SpecError
from gradleak.core.stage import Stage, UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import add_noise, finite_and_not_negative, require, rms

_FORMS = ("std", "relative_std", "noise_multiplier")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussian(UpdateStage):
    """Adds independent Gaussian noise to every entry of every shared tensor.

        released = u + s·N(0, I)

    with ``s = std``; or ``s = relative_std · rms(u_t)`` for each tensor ``u_t``; or ``s = noise_multiplier · C`` where
    ``C`` bounds the norm of the whole update. Entries that are zero get noise too: an embedding row that stayed zero
    would tell that its token was absent.

    Args:
        std: standard deviation in units of the update, at least 0.
        relative_std: standard deviation in units of each tensor's root mean square, at least 0. The scale follows the
            private data, so this form has no guarantee at any value.
        noise_multiplier: standard deviation in units of the norm of the preceding ``clip``, at least 0.

    Raises:
        SpecError: unless exactly one of the three is given, finite and not negative; when bound, if the noise
            multiplier has no norm bound that still holds where the noise enters.

    Guarantees:
        Zero mean, so the best simulation of this stage is to do nothing. Fresh noise at each call, from ``rng`` alone.
        After ``clip(max_norm=C)``, ``noise_multiplier=z`` is the Gaussian mechanism with standard deviation ``z·C``.
        The generator is not cryptographic and works in floating point; see the limits in ``docs/defenses.md``.

    Source: Abadi et al., arXiv 1607.00133, for clipping followed by noise in units of the clipping norm.
    """

    summary: ClassVar[str] = (
        "Adds Gaussian noise to every entry; after a clip it carries a differential-privacy guarantee."
    )

    std: float | None = None
    relative_std: float | None = None
    noise_multiplier: float | None = None
    resolved_std: float | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = {form: getattr(self, form) for form in _FORMS if getattr(self, form) is not None}
        if len(given) != 1:
            raise SpecError(
                f"gaussian: give exactly one of std, relative_std, noise_multiplier; got {', '.join(given) or 'none'}. "
                "For example gaussian(std=0.01), or clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)."
            )
        for key, value in given.items():
            require(finite_and_not_negative(value), "gaussian", key, value, "a finite number of at least 0")
        object.__setattr__(self, "resolved_std", self.std)

    def bind(self, preceding: tuple[Stage, ...]) -> Gaussian:
        if self.noise_multiplier is None:
            return self
        bound = copy.copy(self)
        object.__setattr__(bound, "resolved_std", self.noise_multiplier * _norm_bound(preceding))
        return bound

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        def noisy(_: str, tensor: Tensor) -> Tensor:
            std = self._std_of(tensor) if self.relative_std is None else self.relative_std * rms(tensor)

            def draw(shape: torch.Size, dtype: torch.dtype) -> Tensor:
                return std * torch.randn(shape, generator=rng, device=rng.device, dtype=dtype)

            return add_noise(tensor, draw)

        return update.map(noisy)

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return simulated

    def surrogate_is_identity(self) -> bool:
        return True

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float:
        return self._std_of(observed)

    def gaussian_multiplier(self) -> float | None:
        return self.noise_multiplier

    def _std_of(self, observed: Tensor) -> float:
        if self.relative_std is not None:
            # The released tensor has mean square rms² + (relative_std·rms)²: solve for the noise.
            return self.relative_std * rms(observed) / math.sqrt(1.0 + self.relative_std**2)
        if self.resolved_std is None:
            raise SpecError(
                "gaussian: noise_multiplier has not been bound to a clip. Put the stage in a Channel behind "
                "clip(max_norm=...), or give std=... instead."
            )
        return self.resolved_std


def _norm_bound(preceding: tuple[Stage, ...]) -> float:
    """The norm bound that holds after ``preceding``; raises ``SpecError`` if there is none."""
    spoilers: list[str] = []
    for stage in reversed(preceding):
        bound = stage.norm_bound()
        if bound is not None and not spoilers:
            return bound
        if bound is not None:
            raise SpecError(
                f"gaussian: the norm bound of the clip does not hold after {', '.join(reversed(spoilers))}, so "
                "noise_multiplier has no unit. Put clip(max_norm=...) directly before gaussian, or give std=... instead."
            )
        if not stage.preserves_norm_bound():
            spoilers.append(type(stage).__name__.lower())
    raise SpecError(
        "gaussian: noise_multiplier is in units of the norm of a preceding clip, and there is none. Write "
        "clip(max_norm=1.0)+gaussian(noise_multiplier=...), or give std=... instead."
    )
