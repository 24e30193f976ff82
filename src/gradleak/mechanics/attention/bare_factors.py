"""Why: the layer of the theory stores its weights as a linear map does, ``[out in]``; the closed forms want one factor per head.
Must not know what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gradleak.mechanics.attention.softmax import Heads, HeadsGradient
from gradleak.models import Subject
from gradleak.models.bare import BareAttention


def matrix_names(subject: Subject) -> tuple[str, ...]:
    """Parameters of queries, keys, values and output, in this order."""
    return tuple(m.weight for m in subject.anatomy.blocks[0].maps()[:4])


def split(tensors: Mapping[str, Tensor], subject: Subject, heads: int) -> HeadsGradient:
    """Four stored matrices, of weights or of their gradients, as one factor per head, in float64."""
    stored = [tensors[name].detach().double().T for name in matrix_names(subject)]
    query, key, value = (each.unflatten(1, (heads, -1)).transpose(0, 1) for each in stored[:3])
    return HeadsGradient(query=query, key=key, value=value, output=stored[3].unflatten(0, (heads, -1)))


def heads_of(subject: Subject, module: BareAttention) -> Heads:
    """The layer in factors."""
    own = split(subject.parameters(), subject, module.heads)
    return Heads(query=own.query, key=own.key, value=own.value, output=own.output, scale=own.query.shape[-1] ** -0.5)
