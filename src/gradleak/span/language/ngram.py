"""Why: the weakest language model worth the name, fitted in a second on any text: how often words follow each other. Must not
know tokenizers, updates or attacks.

With c(h w) the count of token w after context h and D = n₁ / (n₁ + 2 n₂), n_i the number of different continuations seen i times,

    p(w | h) = max(c(h w) − D, 0) / c(h) + D · N(h) / c(h) · p(w | h without its first token),

N(h) the number of different tokens after h. Below single tokens lies the uniform distribution, so nothing has probability zero.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ORDER = 3
"""Tokens that one count looks at."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """What follows one context."""

    following: Mapping[int, int]
    total: int
    discount: float

    def of(self, token: int) -> float:
        return max(self.following.get(token, 0) - self.discount, 0.0) / self.total

    @property
    def left(self) -> float:
        """Probability that is handed down to the shorter context."""
        return self.discount * len(self.following) / self.total

    def spread(self, vocab_size: int) -> Float[Tensor, " vocab"]:
        made = torch.zeros(vocab_size, dtype=torch.float64)
        tokens, counts = torch.tensor(list(self.following)), torch.tensor(list(self.following.values()))
        made[tokens] = (counts.double() - self.discount) / self.total
        return made


@dataclass(frozen=True, kw_only=True, slots=True)
class NGram:
    """Counts of up to ``ORDER`` tokens with absolute discounting.

    Attributes:
        single: p of every token without a context.

    Source: Ney, Essen and Kneser, Computer Speech and Language 8 (1994), for the discount and its estimate.
    """

    vocab_size: int
    contexts: Mapping[tuple[int, ...], _Counts]
    single: Float[Tensor, " vocab"]

    @staticmethod
    def of(texts: Sequence[Sequence[int]], *, vocab_size: int) -> NGram:
        """Fitted on texts of token ids, none of which need have more than one token."""
        counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            for place, token in enumerate(text):
                for length in range(min(place, ORDER - 1) + 1):
                    counts[tuple(text[place - length : place])][token] += 1
        contexts: dict[tuple[int, ...], _Counts] = {}
        for length in range(ORDER):
            mine = {context: found for context, found in counts.items() if len(context) == length}
            discount = _discount([count for found in mine.values() for count in found.values()])
            contexts |= {c: _Counts(dict(found), found.total(), discount) for c, found in mine.items()}
        uniform = torch.full((vocab_size,), 1.0 / vocab_size, dtype=torch.float64)
        single = contexts[()].spread(vocab_size) + contexts[()].left * uniform if () in contexts else uniform
        return NGram(vocab_size=vocab_size, contexts=contexts, single=single)

    def following(self, ids: Int64[Tensor, "sentences length"]) -> Float[Tensor, "sentences vocab"]:
        return (
            torch.stack([self._following(tuple(row)) for row in ids[:, -(ORDER - 1) :].tolist()]).log().to(ids.device)
        )

    def each(self, ids: Int64[Tensor, "sentences length"]) -> Float[Tensor, "sentences length"]:
        made = [
            [self._one(tuple(row[max(0, p - ORDER + 1) : p]), t) for p, t in enumerate(row)] for row in ids.tolist()
        ]
        return torch.tensor(made, dtype=torch.float64, device=ids.device).reshape(ids.shape).log()

    def _following(self, context: tuple[int, ...]) -> Float[Tensor, " vocab"]:
        made = self.single
        for start in range(len(context) - 1, -1, -1):
            counts = self.contexts.get(context[start:])
            if counts is None:
                break
            made = counts.spread(self.vocab_size) + counts.left * made
        return made

    def _one(self, context: tuple[int, ...], token: int) -> float:
        made = 1.0 / self.vocab_size
        for start in range(len(context), -1, -1):
            counts = self.contexts.get(context[start:])
            if counts is None:
                break
            made = counts.of(token) + counts.left * made
        return made


def _discount(counts: Sequence[int]) -> float:
    """D; one half where no count of one or two was seen, as Krichevsky and Trofimov take for nothing seen."""
    once, twice = counts.count(1), counts.count(2)
    return once / (once + 2 * twice) if once and twice else 0.5
