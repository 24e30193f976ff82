"""Why: where a loss reads the last block (every position, the hidden ones, one pooled position) decides what can leak.
Read from one backward pass, exactly: a position that is not read has an error signal of exactly zero.
Must not know a model's type.
"""

from __future__ import annotations

from gradleak.core.batch import Batch
from gradleak.models import Subject
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.identifiability.receptive_field import Places


def read_by_loss(subject: Subject, batch: Batch) -> Places:
    """Positions of the last block that the loss of this batch depends on: behind attention, a block mixes no positions."""
    path = subject.anatomy.blocks[-1].attention_output.module
    return flow_through(subject, batch, (path,))[path].errors.ne(0).any(-1) & batch.mask
