"""What a model is trained for decides what its labels mean, which positions send an error signal and what an adversary can
see; every part that depends on it asks one object. Must not know models, attacks or where labels come from.

A new loss is a final subclass of ``Loss`` and an entry of ``LOSSES``; the class of the transformers library that has its
head stands in ``gradleak.models.loading.head_classes``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.core.batch import IGNORED, soft_labels
from gradleak.core.errors import UnknownNameError

LossName = Literal["classification", "causal-lm", "masked-lm", "squared"]
"""The names that plans, records and manifests hold. ``squared`` is the loss of the bare layer alone."""


@dataclass(frozen=True, slots=True)
class Loss(ABC):
    """A training loss over a batch of records. Two losses are equal if they have the same class.

    Attributes:
        name: as users write it and as records hold it.
        labels_records: whether a label belongs to a record as a whole, not to each of its tokens.
        predicts_vocabulary: kind of head: a logit per token of the vocabulary; else one per class, whose number the task sets.
        softmax: whether it is the cross-entropy of a softmax, whose error signal is probabilities less targets.
        hides_tokens: whether the model reads something else at the positions of the targets, so that the records are not
            what it reads.
    """

    name: ClassVar[LossName]
    labels_records: ClassVar[bool]
    predicts_vocabulary: ClassVar[bool]
    softmax: ClassVar[bool] = True
    hides_tokens: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.name

    @property
    def classifies_records(self) -> bool:
        """Whether each record has one class, trained by cross-entropy."""
        return self.labels_records and self.softmax

    def targets(self, labels: Int64[Tensor, "batch ..."], classes: int) -> Float[Tensor, "batch ... classes"]:
        """What the logits are trained towards: a probability per class; a row of zeros carries no loss."""
        return soft_labels(labels, classes)

    def per_group(
        self, logits: Float[Tensor, "records ..."], targets: Float[Tensor, "records ..."], *, groups: int = 1
    ) -> Float[Tensor, " groups"]:
        """The mean loss of each of several batches that are scored in one pass.

        Records are stacked group by group, and every group is reduced on its own, as if it had been trained alone.

        Args:
            logits: ``[groups·batch classes]`` or ``[groups·batch seq vocab]``.
            targets: of the same shape, from ``targets`` or any other probabilities; the mean runs over what carries loss.

        Source:
            The reductions of torch's ``cross_entropy(reduction="mean", ignore_index=-100)``; checked against it in tests.
        """
        terms, weights = (part.reshape(groups, -1) for part in self.terms(logits, targets))
        return terms.sum(1) / weights.sum(1).clamp_min(torch.finfo(weights.dtype).tiny)

    @abstractmethod
    def terms(
        self, logits: Float[Tensor, "records ..."], targets: Float[Tensor, "records ..."]
    ) -> tuple[Float[Tensor, "records ..."], Float[Tensor, "records ..."]]:
        """The loss at every place that can carry one, and the weight of that place in the mean; weights have no gradient."""

    @abstractmethod
    def visible(self, mask: Bool[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
        """Tokens that some term of the loss can depend on, among those of ``mask``."""

    @property
    def sees_every_token(self) -> bool:
        """Whether ``visible`` leaves no token out."""
        mask = torch.ones(1, 2, dtype=torch.bool)
        return bool(self.visible(mask).all())

    @abstractmethod
    def labels_from(
        self, inputs: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
    ) -> Int64[Tensor, "batch seq"] | None:
        """The labels where what the model reads determines them; None where it does not."""

    def random_labels(
        self, inputs: Tensor, classes: int, rng: torch.Generator
    ) -> Int64[Tensor, " batch"] | Int64[Tensor, "batch seq"]:
        """Labels of the right shape for these inputs, evenly drawn: for probes, and for records that came without one."""
        shape = tuple(inputs.shape[:1] if self.labels_records else inputs.shape)
        return torch.randint(classes, shape, generator=rng)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Soft cross-entropy at every place, and its weight: 0 where the target is a row of zeros."""
    return -(targets * torch.log_softmax(logits, dim=-1)).sum(-1), targets.detach().sum(-1)


@final
@dataclass(frozen=True, slots=True)
class Classification(Loss):
    """Cross-entropy of one class per record."""

    name = "classification"
    labels_records = True
    predicts_vocabulary = False

    def terms(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(logits, targets)

    def visible(self, mask: Tensor) -> Tensor:
        return mask

    def labels_from(self, inputs: Tensor, mask: Tensor) -> None:
        return None


@final
@dataclass(frozen=True, slots=True)
class CausalLM(Loss):
    """Cross-entropy of every next token: position t predicts token t + 1, so the last token of a record is a target only."""

    name = "causal-lm"
    labels_records = False
    predicts_vocabulary = True

    def terms(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(logits[:, :-1], targets[:, 1:])

    def visible(self, mask: Tensor) -> Tensor:
        return mask & torch.nn.functional.pad(mask[:, 1:], (0, 1))

    def labels_from(self, inputs: Tensor, mask: Tensor) -> Tensor:
        return inputs.masked_fill(~mask, IGNORED)


@final
@dataclass(frozen=True, slots=True)
class MaskedLM(Loss):
    """Cross-entropy of the tokens that were hidden from the model."""

    name = "masked-lm"
    labels_records = False
    predicts_vocabulary = True
    hides_tokens = True

    def terms(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(logits, targets)

    def visible(self, mask: Tensor) -> Tensor:
        return mask

    def labels_from(self, inputs: Tensor, mask: Tensor) -> None:
        return None


@final
@dataclass(frozen=True, slots=True)
class Squared(Loss):
    """Half the squared distance to the public target of a record's class; the logits are minus these distances."""

    name = "squared"
    labels_records = True
    predicts_vocabulary = False
    softmax = False

    def terms(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return -(targets * logits).sum(-1), targets.detach().sum(-1)

    def visible(self, mask: Tensor) -> Tensor:
        return mask

    def labels_from(self, inputs: Tensor, mask: Tensor) -> None:
        return None


CLASSIFICATION, CAUSAL_LM, MASKED_LM, SQUARED = Classification(), CausalLM(), MaskedLM(), Squared()

LOSSES: Mapping[str, Loss] = MappingProxyType({loss.name: loss for loss in (CLASSIFICATION, CAUSAL_LM, MASKED_LM)})
"""The losses that a user can name, in the order in which a checkpoint is asked for its head."""


def find_loss(name: str) -> Loss:
    """The loss of that name. Raises ``UnknownNameError`` with the names there are."""
    if name not in LOSSES:
        raise UnknownNameError("loss", name, LOSSES)
    return LOSSES[name]
