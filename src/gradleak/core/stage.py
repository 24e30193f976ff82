"""Why: a stage is one step of the channel between the private batch and the adversary; a defense is a stage.

A stage is read in several ways: *apply* runs it, *surrogate* and *noise_std* are what an attacker who knows the
stage simulates (its adaptive counterpart), *norm_bound* and *noise_multiplier* are what the privacy accountant reads.
Must not know any attack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.update import Update


class Stage(ABC):
    """A step that acts on the update before it leaves the client. Subclasses are frozen dataclasses, one per file."""

    @abstractmethod
    def apply(self, update: Update, rng: torch.Generator) -> Update:
        """The real step, with real randomness."""

    @abstractmethod
    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The step as an informed attacker simulates it: differentiable, deterministic.

        Args:
            simulated: candidate updates, each tensor with a leading ``restarts`` axis.
            observed: the released update, without that axis; it may reveal what the step did (the support of a pruning).
        """

    def rescale(self, norm: Float[Tensor, " restarts"], share: float) -> Float[Tensor, " restarts"] | None:
        """The one number that this step multiplies a whole simulated update by, or None if it does more than that.

        Args:
            norm: Euclidean norms of the candidates, over the tensors that are simulated.
            share: norm of those tensors in the released update, in units of the norm of all released tensors.
        """
        return None

    def surrogate_is_identity(self) -> bool:
        """True if the best simulation of this step is to do nothing (zero-mean noise); saves the dense update."""
        return False

    def noise_std(self, observed: Tensor) -> float:
        """Standard deviation per entry that this step adds to a released tensor, as its reader would estimate it."""
        return 0.0

    def bind(self, preceding: tuple[Stage, ...]) -> Self:
        """This stage with what it inherits from the stages before it (a noise multiplier needs the clip's norm)."""
        return self

    def norm_bound(self) -> float | None:
        """A bound on the Euclidean norm of the whole released update that holds for every batch, or None."""
        return None

    def preserves_norm_bound(self) -> bool:
        """True if an earlier norm bound still holds after this step."""
        return False

    def gaussian_multiplier(self) -> float | None:
        """Gaussian noise on every entry in units of the preceding norm bound, or None: no certified noise here."""
        return None
