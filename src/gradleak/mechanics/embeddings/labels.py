"""What the gradient of a classification head says about the labels, before any search.

With a softmax cross-entropy, dL/db_c = mean over records of (p_c − y_c). Since 0 < p_c < 1, an entry is negative only
if class c occurs; with one record, exactly the label's entry is negative. Must not know any attack.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.probe import head_inputs
from gradleak.models import Anatomy, Subject


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


def labels_of_records(
    update: Mapping[str, Tensor],
    subject: Subject,
    inputs: Int64[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    descent: bool,
) -> tuple[int, ...] | None:
    """The label of every record of a recovered batch, from the head's weights and one forward pass.

        dL/dW_head = mean_b (p_b − e_{y_b}) h_bᵀ,   h_b the head's input for record b

    With linearly independent h_b the factors p_b − e_{y_b} follow by least squares, and only the label's entry is
    negative.

    Args:
        descent: True if the update is a step against the gradient (a delta), which has the opposite sign.

    Returns:
        None where the head is not shared, reads single tokens, or the records' features do not tell them apart.
    """
    head = subject.anatomy.head
    if head is None or head.weight not in update or not subject.loss.classifies_records:
        return None
    features = head_inputs(subject, head.module, inputs, mask).double()
    if features.shape != (len(inputs), head.in_features) or int(torch.linalg.matrix_rank(features)) < len(inputs):
        return None
    gradient = head.as_matrix(update[head.weight]).double()
    factors: Float[Tensor, "batch classes"] = torch.linalg.lstsq(features.T, gradient.T).solution
    return tuple(int(c) for c in (factors.argmax(dim=1) if descent else factors.argmin(dim=1)))
