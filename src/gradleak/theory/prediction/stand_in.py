"""A prediction without data needs some batch of the asked shape; this is the hardest one of that shape, all tokens
distinct. Must not know laws or attacks.
"""

from __future__ import annotations

import torch

from gradleak.core.batch import IGNORED, Batch
from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.core.rng import derive
from gradleak.models import Subject


def stand_in_batch(subject: Subject, *, batch_size: int, seq_len: int, seed: int) -> Batch:
    """A batch of distinct random tokens: the most that a batch of this shape can hold.

    Raises:
        SpecError: if a size is out of range for the model.
        NotApplicableError: for a model that reads no text.
    """
    if subject.modality != "text":
        raise NotApplicableError(
            f"{subject.name} reads images; the laws of `predict` are about tokens. Use `gradleak audit` for images."
        )
    longest = subject.anatomy.max_positions
    if batch_size < 1 or seq_len < 2 or (longest is not None and seq_len > longest):
        limit = "" if longest is None else f" and at most {longest}"
        raise SpecError(
            f"A batch needs at least 1 record and 2 tokens{limit} per record, got {batch_size} records of {seq_len}."
        )
    rng = derive(seed, "stand-in")
    special = subject.tokenizer.special_ids if subject.tokenizer is not None else frozenset()
    usable = torch.tensor([t for t in range(subject.anatomy.vocab_size) if t not in special])
    order = usable[torch.randperm(len(usable), generator=rng)]
    count = batch_size * seq_len
    ids = order.repeat(-(-count // len(order)))[:count].reshape(batch_size, seq_len)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if subject.loss.labels_records:
        return Batch(inputs=ids, mask=mask, labels=subject.loss.random_labels(ids, subject.classes, rng))
    labels = subject.loss.labels_from(ids, mask)
    if labels is not None:
        return Batch(inputs=ids, mask=mask, labels=labels)
    hidden = torch.zeros_like(mask)
    for row in hidden:
        row[torch.randperm(seq_len, generator=rng)[: max(1, round(0.15 * seq_len))]] = True
    blank = subject.tokenizer.mask_id if subject.tokenizer is not None else None
    shown = ids if blank is None else ids.masked_fill(hidden, blank)
    return Batch(inputs=shown, mask=mask, labels=torch.where(hidden, ids, IGNORED))
