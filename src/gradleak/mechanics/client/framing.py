"""A tokenizer puts special tokens before and after every text. Who knows the tokenizer knows these tokens and, up to
padding, their places: nobody has to search for them. Must not know any attack, nor a record's content.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from gradleak.models import Tokenizer

UNKNOWN = -1
"""Stands where a place's token is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Framing:
    """The special tokens that open and close every record."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @staticmethod
    def of(tokenizer: Tokenizer | None) -> Framing | None:
        """What this tokenizer puts around a text; None if it puts nothing, or there is none."""
        if tokenizer is None:
            return None
        ids, mask = tokenizer.encode(["a"], 16)
        row = ids[0][mask[0]].tolist()
        content = [place for place, token in enumerate(row) if token not in tokenizer.special_ids]
        if not content or len(content) == len(row):
            return None
        return Framing(before=tuple(row[: content[0]]), after=tuple(row[content[-1] + 1 :]))

    def holds_in(self, inputs: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]) -> bool:
        """Whether every record is framed like this, and padded as a tokenizer pads: on the right, to the longest."""
        lengths = mask.sum(1)
        if int(lengths.max()) != inputs.shape[1] or bool((mask != _leading(lengths, inputs.shape[1])).any()):
            return False
        known = self.known(lengths, inputs.shape[1])
        return bool((lengths >= len(self.before) + len(self.after)).all()) and bool(
            ((known == UNKNOWN) | (known == inputs)).all()
        )

    def known(self, lengths: Int64[Tensor, " batch"], seq_len: int) -> Int64[Tensor, "batch seq"]:
        """The tokens at places that the frame tells, ``UNKNOWN`` elsewhere.

        Args:
            lengths: of the records; 0 where only the opening tokens have a known place.
        """
        known = torch.full((len(lengths), seq_len), UNKNOWN)
        opening = self.before[:seq_len]
        known[:, : len(opening)] = torch.tensor(opening, dtype=torch.int64)
        for row, length in zip(known, lengths.tolist(), strict=True):
            if length >= len(self.before) + len(self.after):
                row[length - len(self.after) : length] = torch.tensor(self.after, dtype=torch.int64)
        return known


def _leading(lengths: Int64[Tensor, " batch"], seq_len: int) -> Bool[Tensor, "batch seq"]:
    return torch.arange(seq_len) < lengths.unsqueeze(1)
