"""Why: what the gradient of a classification head says about the labels, before any search.

With a softmax cross-entropy, dL/db_c = mean over records of (p_c − y_c). Since 0 < p_c < 1, an entry is negative only
if class c occurs; with one record, exactly the label's entry is negative. Must not know any attack.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gradleak.models import Anatomy


def classes_present(update: Mapping[str, Tensor], anatomy: Anatomy) -> frozenset[int] | None:
    """Classes that certainly occur in the batch, read from the sign of the head's bias gradient.

    Returns:
        The classes with a negative entry, or None where the head has no bias or it is not shared. Noise in the update
        makes "certainly" into "apparently".

    Source: Zhao et al. 2020 (iDLG) for one record.
    """
    head = anatomy.head
    if head is None or head.bias is None or head.bias not in update:
        return None
    return frozenset(int(c) for c in (update[head.bias] < 0).nonzero().flatten())


def single_label(update: Mapping[str, Tensor], anatomy: Anatomy, *, batch_size: int) -> int | None:
    """The label of a batch of one, or None if the update does not tell it apart."""
    if batch_size != 1:
        return None
    present = classes_present(update, anatomy)
    return next(iter(present)) if present is not None and len(present) == 1 else None
