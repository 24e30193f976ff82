"""Soteria prunes the gradient of one layer where the layer's representation says most about the input. Where it
pruned is there to be read: whole columns of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.errors import ModelError
from gradleak.core.stage import Client, ClientStage, State
from gradleak.core.update import Update
from gradleak.defenses._tensors import on_support, require
from gradleak.models import Subject

_TINY = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class Soteria(ClientStage):
    """Zeroes the columns of the head's gradient whose input unit depends least on the private input for its size.

        score_i = mean over records of ‖∂r_i/∂x‖ / |r_i|,   r the input of the head, x embeddings or pixels
        released = u, but column i of the head's weight is zero where score_i is among the ⌊p·n⌋ smallest

    Args:
        fraction: p, the share of columns set to zero, in [0, 1).

    Raises:
        SpecError: if ``fraction`` is out of range; when run, ``ModelError`` unless the model is a classifier whose head
            is trained.

    Guarantees:
        Deterministic. Everything but the head's weight is shared as it was; its norm does not grow.
        The surrogate keeps the support that the release shows: exact at the truth. No differential privacy.

    Source: arXiv 2012.06043, with the score's denominator r as in the paper's code, by the notes.
    Deviations: the layer is the head, found by structure (public code: by index); with several records the scores are
        averaged; the units are those that a classifier's head reads, after the pooling.
    """

    summary: ClassVar[str] = "Zeroes those columns of the head's gradient that matter least to the representation."

    fraction: float

    def __post_init__(self) -> None:
        require(0.0 <= self.fraction < 1.0, "soteria", "fraction", self.fraction, "in [0, 1)")

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        subject: Subject = client.trainer.subject
        head = subject.anatomy.head
        if not subject.loss.classifies_records or head is None or head.weight not in update:
            raise ModelError(f"soteria: {subject.name} shares no classifier's head, whose gradient is to be pruned.")
        scores = unit_scores(subject, client.data)
        count = int(self.fraction * scores.numel() + 1e-9)
        kept = torch.ones_like(scores)
        kept[scores.argsort(stable=True)[:count]] = 0.0

        def prune(name: str, tensor: Tensor) -> Tensor:
            if name != head.weight:
                return tensor
            return tensor * (kept[:, None] if head.input_first else kept).to(tensor)

        return update.map(prune), {}

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return on_support(simulated, observed)

    def preserves_norm_bound(self) -> bool:
        return True


def unit_scores(subject: Subject, data: TrainingData) -> Tensor:
    """‖∂r_i/∂x‖ / |r_i| of every unit that the head reads, averaged over records."""
    head = subject.anatomy.head
    assert head is not None
    inputs = data.inputs if data.inputs.is_floating_point() else subject.embed(data.inputs)
    inputs = inputs.detach().requires_grad_()
    image = subject.modality == "image"
    seen: list[Tensor] = []

    def listen(module: Any, args: Any) -> None:
        seen.append(args[0])

    handle = subject.module.get_submodule(head.module).register_forward_pre_hook(listen)
    try:
        with torch.enable_grad():
            _ = subject.logits(pixels=inputs) if image else subject.logits(embeddings=inputs, mask=data.mask)
    finally:
        handle.remove()
    units = seen[-1].reshape(inputs.shape[0], -1)
    # Records do not mix in the model, so one backward pass per unit serves all records.
    columns = [torch.autograd.grad(units[:, i].sum(), inputs, retain_graph=True)[0] for i in range(units.shape[1])]
    slopes = torch.stack([column.flatten(1).norm(dim=1) for column in columns], 1)
    return (slopes / units.detach().abs().clamp_min(_TINY)).mean(0)
