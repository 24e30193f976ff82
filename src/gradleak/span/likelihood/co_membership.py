"""Why: tokens of one record share the record's error signal, and the rows of the token table's gradient hold the error signals. Which
tokens belong together is then read off these rows, whatever the width. Must not know attention, positions or how records are searched.

Under a classifier's loss the signal of a token is what the layers hand back from the one position that the head reads: much the same
direction for all tokens of a record, most for neighbors. What all records have in common (the head's weights) says nothing: rows of
length one are divided by the root of their second moments M, directions weaker than the average one left as they are:

    z_v = (M + tr(M)/d)^(-1/2) r_v / ‖r_v‖,        kinship of v and w = cos(z_v, z_w).

Where error signals differ from token to token (a language model's loss) this tells little, and the evidence, whose laws are
fitted on the table itself, is then small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.probe import chunks

_NEAREST = 3
"""Tokens of a prefix, from its end, whose kinship is asked, each on its own: signals of distant positions are less alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SameRecordEvidence:
    """Error signals of tokens that occur, so that their inner product is their kinship.

    Attributes:
        ids: the tokens, as the rows of ``signals``; numbers: row of ``signals`` of every token of the vocabulary; the last row, zero, for those that do not occur.
    """

    signals: Float[Tensor, "tokens model"]
    ids: Int64[Tensor, " tokens"]
    numbers: Int64[Tensor, " vocab"]

    @staticmethod
    def of(rows: Float[Tensor, "tokens model"], ids: Int64[Tensor, " tokens"], vocab_size: int) -> SameRecordEvidence:
        """From the token table's gradient at the tokens that occur."""
        unit = torch.nn.functional.normalize(rows.double(), dim=1)
        values, vectors = torch.linalg.eigh(unit.T @ unit)
        white = (unit @ vectors) / (values.clamp(min=0) + values.mean()).sqrt()
        signals = torch.nn.functional.normalize(white, dim=1).float()
        numbers = torch.full((vocab_size,), len(ids), device=ids.device)
        numbers[ids] = torch.arange(len(ids), device=ids.device)
        return SameRecordEvidence(
            signals=torch.cat((signals, signals.new_zeros(1, signals.shape[1]))), ids=ids, numbers=numbers
        )

    def weigh(
        self, prefixes: Int64[Tensor, "prefixes before"], tokens: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "prefixes tokens nearest"]:
        """Minus the kinship of each token with the last ones of each prefix: small for members, as gradient_likelihoods are."""
        last = self.numbers[prefixes[:, -_NEAREST:]]
        asked = self.signals[self.numbers[tokens]]
        made = [-(self.signals[last[part]] @ asked.T) for part in chunks(len(last), last.shape[1] * len(tokens))]
        return torch.cat(made).transpose(1, 2).double()
