"""An audit draws its private batches somewhere: from a pool of records, or it was handed the one to audit. Holds
private data; only the runner and the judge see a source.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.harness.request.data import Pool, draw_batch
from gradleak.models import Subject

OTHERS = 99
"""Other records that the judge may compare with: with the true one, a rank out of a hundred."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Others:
    """Records of the same kind that are not in the batch: the public corpus of a guess without the observation, and
    the decoys of identification. One of the two is empty.
    """

    texts: tuple[str, ...] = ()
    images: Float[Tensor, "images channels height width"] | None = None

    def records(self, subject: Subject, *, max_length: int) -> tuple[Tensor, ...]:
        """As the judge compares them: token ids ``[length]``, or pixels."""
        if self.images is not None:
            return tuple(self.images)
        if not self.texts or subject.tokenizer is None:
            return ()
        ids, mask = subject.tokenizer.encode(self.texts, max_length)
        return tuple(row[keep] for row, keep in zip(ids, mask, strict=True))


class Source(Protocol):
    """Where batches come from."""

    def draw(self, rng: torch.Generator) -> tuple[Batch, Others]:
        """One private batch, and other records from where it came."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSource:
    """Draws a new batch for every repeat."""

    pool: Pool
    subject: Subject
    batch_size: int
    max_length: int

    def draw(self, rng: torch.Generator) -> tuple[Batch, Others]:
        batch, indices = draw_batch(
            self.pool, self.subject, batch_size=self.batch_size, max_length=self.max_length, rng=rng
        )
        order = torch.randperm(self.pool.size, generator=rng).tolist()
        rest = [index for index in order if index not in set(indices)][:OTHERS]
        if self.pool.images is not None:
            return batch, Others(images=self.pool.images[rest] if rest else None)
        texts = self.pool.texts
        if texts is None or not rest:
            return batch, public_texts()
        return batch, Others(texts=tuple(texts[index] for index in rest))


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedSource:
    """The same batch in every repeat: what changes is the randomness of training, defenses and attacks."""

    batch: Batch
    others: Others

    def draw(self, rng: torch.Generator) -> tuple[Batch, Others]:
        return self.batch, self.others


def public_texts() -> Others:
    """The shipped public sentences, where the data at hand leaves nothing to guess from."""
    text = resources.files("gradleak.data").joinpath("public.txt").read_text(encoding="utf-8")
    return Others(texts=tuple(line.strip() for line in text.splitlines() if line.strip())[:OTHERS])
