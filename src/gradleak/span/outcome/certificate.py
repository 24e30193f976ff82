"""A recovery proves itself by giving back the update it came from. Must not know how the records were found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.embeddings.labels import labels_of_records
from gradleak.mechanics.subspace.number_format import significant_bits
from gradleak.span.outcome.label_fit import fitted_labels

_REDUCTION_ULPS = 32
"""Sums over records and tokens in another order move a gradient by a few units in the last place, relative to its norm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """How well the records explain the update.

    Attributes:
        error: ‖recomputed − released‖ / ‖released‖ over all tensors.
        per_tensor: the same for each shared tensor; one that is smaller than the rounding of the whole update (the bias of keys
            has no gradient at all) is measured against that rounding.
        floor: what rounding alone can make of ``error``.
        labels: class ids used, or None for language-model losses.
    """

    error: float
    per_tensor: Mapping[str, float]
    floor: float
    labels: tuple[int, ...] | None

    @property
    def exact(self) -> bool:
        return self.error <= self.floor


def certify(
    update: Mapping[str, Tensor],
    trainer: ClientTrainer,
    records: Sequence[Int64[Tensor, " length"]],
    *,
    labels: Sequence[int] | None,
    batch_size: int,
    seq_len: int,
    rng: torch.Generator,
    clock: Clock,
    starts: Sequence[int] | None = None,
    release: Callable[[Update, torch.Generator], Update] = lambda update, _: update,
) -> Certificate | None:
    """Recomputes the update of ``records``; unknown class labels are read from it.

    Args:
        starts: how many positions of padding stand before each record; none if left out.
        release: what stages that draw nothing make of the client's update.

    Returns:
        The best certificate, or None where it cannot be computed: another number of records than the batch holds,
        targets that the records do not tell (masked tokens), too many records and classes to fit labels, only the first blocks of
        the model, or a client whose micro- or mini-batches make the unknown order of the records matter.

    Guarantees:
        ``exact`` means that the batch reproduces the update up to rounding. It needs a deterministic client: with
        dropout or noise no batch does, and the caller must not ask.
    """
    before = starts or (0,) * len(records)
    if (
        trainer.subject.extent is not None
        or not trainer.training.plain
        or len(records) != batch_size
        or trainer.subject.loss.hides_tokens
        or any(start + r.numel() > seq_len for start, r in zip(before, records, strict=True))
    ):
        return None
    inputs, mask = _pad(records, before, seq_len, _pad_id(trainer))
    best: Certificate | None = None
    for assignment in _assignments(update, trainer, inputs, mask, labels, rng, clock):
        targets = inputs.masked_fill(~mask, IGNORED) if assignment is None else torch.tensor(assignment)
        recomputed = release(trainer.update(Batch(inputs=inputs, mask=mask, labels=targets), rng), rng)
        certificate = _compare(update, recomputed, assignment)
        if best is None or certificate.error < best.error:
            best = certificate
        if best.exact or clock.spent():
            break
    return best


def _pad(records: Sequence[Tensor], starts: Sequence[int], seq_len: int, pad_id: int) -> tuple[Tensor, Tensor]:
    inputs = torch.full((len(records), seq_len), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(records), seq_len, dtype=torch.bool)
    for row, (start, record) in enumerate(zip(starts, records, strict=True)):
        inputs[row, start : start + record.numel()] = record
        mask[row, start : start + record.numel()] = True
    return inputs, mask


def _pad_id(trainer: ClientTrainer) -> int:
    return trainer.subject.tokenizer.pad_id if trainer.subject.tokenizer is not None else 0


def _assignments(
    update: Mapping[str, Tensor],
    trainer: ClientTrainer,
    inputs: Tensor,
    mask: Tensor,
    labels: Sequence[int] | None,
    rng: torch.Generator,
    clock: Clock,
) -> Iterator[tuple[int, ...] | None]:
    """Label assignments to try: what the head tells, then what all tensors together tell."""
    if not trainer.subject.loss.labels_records:
        yield None
        return
    descent = trainer.training.share == "delta"
    read = labels_of_records(update, trainer.subject, inputs, mask, descent=descent)
    # Known labels come in the order of the private batch, the records in any order.
    if read is not None and (labels is None or sorted(read) == sorted(labels)):
        yield read
    fitted = fitted_labels(update, trainer, inputs, mask, known=labels, rng=rng, clock=clock)
    if fitted is not None and fitted != read:
        yield fitted


def _compare(
    update: Mapping[str, Tensor], recomputed: Mapping[str, Tensor], labels: tuple[int, ...] | None
) -> Certificate:
    shared = [name for name in update if name in recomputed]
    off = {name: _norm(recomputed[name] - update[name]) for name in shared}
    size = {name: _norm(update[name]) for name in shared}
    # A tensor of few or tiny entries may fit a short format by chance; the format is what all of them need.
    bits = max(significant_bits(update[name]) for name in shared)
    whole, floor = max(math.hypot(*size.values()), 1e-300), _floor(bits)
    return Certificate(
        error=math.hypot(*off.values()) / whole,
        per_tensor={name: off[name] / max(size[name], floor * whole) for name in shared},
        floor=floor,
        labels=labels,
    )


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _floor(bits: int) -> float:
    """Relative error between two computations of the same update whose sums ran in another order.

    An entry with relative error e before it is rounded to steps of 2^(1 − bits) lands on another step with probability
    e / step, and is then off by one step: the error over many entries is sqrt(e · step).
    """
    reduction = _REDUCTION_ULPS * 2.0**-23
    return math.sqrt(reduction * max(reduction, 2.0 ** (1 - bits)))
