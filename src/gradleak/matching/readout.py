"""Why: from points in embedding space back to tokens. Must not know how the points were found."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.models import Subject


def token_table(subject: Subject) -> Float[Tensor, "vocab model"]:
    """The embedding of every token, as the model's first block adds positions to it; detached."""
    with torch.no_grad():
        return subject.embed(torch.arange(subject.anatomy.vocab_size).unsqueeze(0))[0]


def nearest_tokens(
    subject: Subject, embeddings: Float[Tensor, "batch seq model"], mask: Bool[Tensor, "batch seq"]
) -> tuple[Int64[Tensor, " length"], ...]:
    """The token with the largest cosine at every real position; padding at the end of a record is cut off."""
    table = torch.nn.functional.normalize(token_table(subject), dim=-1)
    ids = (torch.nn.functional.normalize(embeddings, dim=-1) @ table.T).argmax(-1)
    pad = subject.tokenizer.pad_id if subject.tokenizer is not None else -1
    return tuple(_without_tail(row[keep], pad) for row, keep in zip(ids, mask, strict=True))


def _without_tail(ids: Int64[Tensor, " seq"], pad: int) -> Int64[Tensor, " length"]:
    content = (ids != pad).nonzero().flatten()
    return ids[: int(content[-1]) + 1] if content.numel() else ids[:0]
