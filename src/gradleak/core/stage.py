"""A stage is one step of the channel between the private batch and the adversary; a defense is a stage.

There is one kind of stage for every place of the channel, in this order:

    DataStage      changes what is trained on            batch, trainer → data
    ModelStage     changes what is trained               subject → subject
    TrainingStage  replaces a local step's aggregation   per-example gradients → gradient
    UpdateStage    changes what is shared                update → update
    ClientStage    the same, and looks at the client     update, batch, trainer, own state → update, state
    ProtocolStage  joins what several clients share      updates → update

Every stage is read in several ways: run it, simulate it as an attacker who knows it does (*surrogate*, *ignored*,
*noise_std*: its adaptive counterpart), bound it (*norm_bound*, *gaussian_multiplier*: what the privacy accountant
reads). Must not know any attack.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import Batch, TrainingData
from gradleak.core.update import Update

State = Mapping[str, Tensor]
"""What one stage of one client keeps from one round to the next; empty before the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """What a stage that runs on the client may look at.

    Attributes:
        batch: the private records.
        data: what the records have become: what was, or is about to be, trained on.
        trainer: the local training, of the model as it is deployed (``gradleak.mechanics.client.trainer.ClientTrainer``).
        round: releases that this client made before this one.
        state: what this very stage returned in the client's last round; empty in the first.
    """

    batch: Batch
    data: TrainingData
    trainer: Any
    round: int = 0
    state: State = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a stage's description may depend on besides its own settings.

    Attributes:
        steps: local steps behind one release.
        round: releases of this client before this one.
        tensors: number of shared tensors.
        sizes: records of each client, where several are joined; empty = not known.
    """

    steps: int = 1
    round: int = 0
    tensors: int = 1
    sizes: tuple[int, ...] = ()


class Stage:
    """A step of the channel. Subclasses are frozen dataclasses, one per file, of exactly one of the kinds below.

    Attributes:
        behind: a chain, as it is written on the command line, that a stage of this class cannot do without before it.
    """

    behind: ClassVar[str] = ""

    def bind(self, preceding: tuple[Stage, ...]) -> Self:
        """This stage with what it inherits from the stages before it (a noise multiplier needs the clip's norm)."""
        return self

    def ignored(self, trainer: Any) -> frozenset[str]:
        """Shared tensors that an informed attacker leaves out: what this stage made of them misleads.

        Args:
            trainer: the local training, of the model as it is deployed.
        """
        return frozenset()

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float | None:
        """Standard deviation per entry that this step adds to a released tensor, as its reader would estimate it.

        Args:
            observed: the released tensor.
            weight: the parameter that it belongs to, as it was before training; None for a reader without the model.

        Returns:
            None if there is noise whose size this reader cannot tell.
        """
        return 0.0

    def norm_bound(self) -> float | None:
        """A bound on the Euclidean norm of the whole released update that holds for every batch, or None."""
        return None

    def preserves_norm_bound(self) -> bool:
        """True if an earlier norm bound still holds after this step."""
        return False

    def gaussian_multiplier(self) -> float | None:
        """Gaussian noise on every entry in units of the preceding norm bound, or None: no certified noise here."""
        return None

    def describe(self, run: Run) -> Mapping[str, Any] | None:
        """What this stage does for privacy all by itself, in the words of a training plan (``gradleak.privacy.plan.file``).

        The accountant decides what follows from it; a stage never states an ε. Build it from the same objects that run.

        Returns:
            Keys and values of a plan, or None if the stage by itself is no mechanism.
        """
        return None


class DataStage(Stage, ABC):
    """Changes the private records before they are trained on. What is to be recovered stays the private record, while
    an attacker who matches the update finds what was trained on.
    """

    @abstractmethod
    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        """What is trained on in the place of ``client.data``."""

    def surrogate(self, client: Client) -> TrainingData:
        """What an informed attacker expects to be trained on if ``client.data`` were the private records. For ranking."""
        return client.data

    def surrogate_is_identity(self) -> bool:
        """True if the best that the attacker can do about this step is to do nothing."""
        return True

    def unknowns(self, records: int) -> tuple[int, ...] | None:
        """Shape of this step's draw as an informed attacker searches it along with the records; None for one who does not."""
        return None

    def guessed(
        self,
        inputs: Float[Tensor, "restarts batch ..."],
        targets: Float[Tensor, "restarts batch ..."],
        draw: Float[Tensor, "restarts ..."],
    ) -> tuple[Tensor, Tensor]:
        """What would be trained on if the records were ``inputs`` and ``targets``, differentiable; exact for some ``draw``.

        Args:
            draw: any real numbers of the shape of ``unknowns``; zeros stand for not knowing anything.
        """
        return inputs, targets


class ModelStage(Stage, ABC):
    """Changes what is trained: other layers, or fewer parameters. Everybody has the changed model, the adversary too,
    who therefore replays it as it is.
    """

    @abstractmethod
    def change(self, subject: Any) -> Any:
        """The model as it is deployed (``gradleak.models.Subject``); the given one stays as it is. Deterministic.

        Raises:
            ModelError: if the model has no place for this stage.
        """


class TrainingStage(Stage, ABC):
    """Replaces how a local step makes one gradient of many: clipping of, and noise on, every example's own gradient.

    The trainer computes the gradient of each example's own mean loss; this stage turns them into the gradient that the
    optimizer steps with, or that is shared. Without such a stage that is the gradient of the batch's mean loss, which
    for classifiers is the mean of the examples' gradients.
    """

    @abstractmethod
    def aggregate(
        self, gradients: Mapping[str, Float[Tensor, "batch ..."]], iteration: int, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The step's gradient.

        Args:
            gradients: by parameter name, one row per example. An example's own gradient is row i of *every* tensor.
            iteration: local steps that this client took before this one, over all rounds: what a schedule reads.
        """

    @abstractmethod
    def surrogate(self, gradients: Mapping[str, Float[Tensor, "batch ..."]], iteration: int) -> Mapping[str, Tensor]:
        """``aggregate`` as an informed attacker simulates it: differentiable, deterministic (its noise left out)."""

    def step_noise_std(self, batch_size: int, iteration: int = 0) -> float:
        """Standard deviation per entry of the noise in one step's gradient."""
        return 0.0

    def example_bound(self) -> float | None:
        """C: a bound on the norm of one example's summand, over all tensors, in units of which ``describe`` speaks of noise;
        None if there is none."""
        return None


class NormStage(TrainingStage, ABC):
    """A training stage that needs an example's gradient for its norm alone, and then a weighted sum of all.

    ``aggregate`` is ``finish(Σ weights_i·g_i)``. The trainer goes this way where it has norms and sum without any example's own
    gradient in memory (``mechanics.ghost``), and calls ``aggregate`` where it has not.
    """

    @abstractmethod
    def weights(
        self, square_norms: Float[Tensor, " batch"], iteration: int, rng: torch.Generator
    ) -> Float[Tensor, " batch"] | None:
        """What each example's gradient is multiplied by, 0 for one that takes no part; None, before ``rng`` is used, if
        the norms do not tell.
        """

    @abstractmethod
    def finish(
        self, total: Mapping[str, Tensor], records: int, iteration: int, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The step's gradient from the weighted sum over a client's ``records``."""


class ReleaseStage(Stage, ABC):
    """What stages on a single client's update have in common: the informed attacker's simulation."""

    @abstractmethod
    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The step as an informed attacker simulates it: differentiable, deterministic.

        Args:
            simulated: candidate updates, each tensor with a leading ``restarts`` axis.
            observed: the released update, without that axis; it may reveal what the step did (the support of a pruning).
        """

    def studied(self, released: Mapping[str, Tensor], trainer: Any) -> tuple[ReleaseStage, Mapping[str, Tensor]]:
        """What an informed attacker makes of one release before any search: this stage, as it is then simulated, and the
        release, as candidates are then compared with it.

        Args:
            released: what the adversary sees, or what a later stage's study left of it.
            trainer: the local training, of the model as it is deployed.
        """
        return self, released

    def surrogate_is_identity(self) -> bool:
        """True if the best simulation of this step is to do nothing (zero-mean noise); saves the dense update."""
        return False

    def rescale(self, norm: Float[Tensor, " restarts"], share: float) -> Float[Tensor, " restarts"] | None:
        """The one number that this step multiplies a whole simulated update by, or None if it does more than that.

        Args:
            norm: Euclidean norms of the candidates, over the tensors that are simulated.
            share: norm of those tensors in the released update, in units of the norm of all released tensors.
        """
        return None


class UpdateStage(ReleaseStage):
    """Acts on the update before it leaves the client, and looks at nothing else."""

    @abstractmethod
    def apply(self, update: Update, rng: torch.Generator) -> Update:
        """The real step, with real randomness."""


class ClientStage(ReleaseStage):
    """Acts on the update before it leaves the client; looks at the batch, the model, or what the client kept."""

    @abstractmethod
    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        """The real step, with real randomness, and what the client keeps for this stage until its next round.

        Nothing may be kept on the stage itself: one stage serves all clients of a channel.
        """


class ProtocolStage(Stage, ABC):
    """Joins the updates of several clients before the adversary sees anything."""

    @abstractmethod
    def clients(self) -> int:
        """How many clients the private batch is dealt out to, as evenly as possible."""

    @abstractmethod
    def join(self, updates: tuple[Update, ...], sizes: tuple[int, ...], rng: torch.Generator) -> Update:
        """What the adversary sees.

        Args:
            updates: one per client; sizes: their numbers of records.
        """

    @abstractmethod
    def surrogate(
        self, simulated: Mapping[str, Float[Tensor, "restarts clients ..."]], sizes: tuple[int, ...]
    ) -> Mapping[str, Float[Tensor, "restarts ..."]]:
        """``join`` as an informed attacker simulates it: differentiable, deterministic."""
