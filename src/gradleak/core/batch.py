"""The private records. Only the client and the judge ever hold one. Must not know models or attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from gradleak.core.errors import DataError

IGNORED = -100
"""Label of a position that carries no loss: the convention of torch's cross-entropy."""

Modality = Literal["text", "image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Private records as the model takes them.

    Attributes:
        inputs: token ids ``[batch seq]`` (int64) or pixels ``[batch channels height width]`` (floating).
        mask: for text ``[batch seq]``, true where a token is real; for images ``[batch]``, all true.
        labels: class ids ``[batch]``, or target ids ``[batch seq]`` with ``IGNORED`` where there is no target.

    Raises:
        DataError: if shapes or types do not fit each other, or pixels are not finite.
    """

    inputs: Num[Tensor, "batch ..."]
    mask: Bool[Tensor, "batch ..."]
    labels: Int64[Tensor, "batch ..."]

    def __post_init__(self) -> None:
        text = self.modality == "text"
        wanted = tuple(self.inputs.shape) if text else tuple(self.inputs.shape[:1])
        if self.inputs.ndim != (2 if text else 4) or self.inputs.shape[0] == 0:
            raise DataError(
                f"A batch needs token ids [batch, seq] or pixels [batch, channels, height, width], got {tuple(self.inputs.shape)}."
            )
        if tuple(self.mask.shape) != wanted or self.mask.dtype != torch.bool:
            raise DataError(
                f"The mask must be boolean with shape {wanted}, got {self.mask.dtype} {tuple(self.mask.shape)}."
            )
        if tuple(self.labels.shape) not in {tuple(self.inputs.shape[:1]), wanted}:
            raise DataError(f"Labels must have shape [batch] or that of the inputs, got {tuple(self.labels.shape)}.")
        if not text and not bool(torch.isfinite(self.inputs).all()):
            raise DataError("The pixels hold NaN or infinite values. Mend the images before auditing.")

    @property
    def modality(self) -> Modality:
        return "image" if self.inputs.is_floating_point() else "text"

    @property
    def size(self) -> int:
        return self.inputs.shape[0]

    def records(self) -> tuple[Tensor, ...]:
        """What there is to recover, one tensor per record: token ids ``[length]`` without padding, or pixels.

        Where a masked-LM batch hides a token from the model, the record holds the hidden token.
        """
        if self.modality == "image":
            return tuple(self.inputs)
        original = self.inputs
        if self.labels.ndim == 2:
            original = torch.where(self.labels == IGNORED, self.inputs, self.labels)
        return tuple(ids[keep] for ids, keep in zip(original, self.mask, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What local training reads: the private batch, after the stages that act on data.

    Attributes:
        inputs: token ids ``[batch seq]`` (int64), embeddings ``[batch seq model]`` or pixels ``[batch channels height width]``.
        targets: label probabilities ``[batch classes]`` or ``[batch seq vocab]``; an all-zero row carries no loss.
        mask: as in ``Batch``.
        noise: what layers that draw at random drew for these records, by name, the records' axis first; empty where the
            model has none, or they compute with their mean.
    """

    inputs: Num[Tensor, "batch ..."]
    targets: Float[Tensor, "batch ..."]
    mask: Bool[Tensor, "batch ..."]
    noise: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.inputs.shape[0]


def soft_labels(labels: Int64[Tensor, "*places"], classes: int) -> Float[Tensor, "*places classes"]:
    """One-hot rows; an all-zero row where the label is ``IGNORED`` (no loss)."""
    ignored = labels == IGNORED
    rows = torch.nn.functional.one_hot(labels.masked_fill(ignored, 0), classes).to(torch.get_default_dtype())
    return rows.masked_fill(ignored.unsqueeze(-1), 0.0)
