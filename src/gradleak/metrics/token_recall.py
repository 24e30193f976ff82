"""The plainest question, which of the private tokens were recovered. Must not look at their order."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

from scipy.special import bdtrc

from gradleak.core.batch import Modality
from gradleak.core.metric import Comparison, Metric
from gradleak.metrics._sequence import content_vocabulary, counts, mean, overlap


class TokenRecall(Metric):
    """Multiset recall of content tokens.

    For a record with token counts c and a matched proposal with counts g, the value is Σ_t min(c_t, g_t) / Σ_t c_t.

    A bag b is proposed for the whole batch. Its copies are spent on the records one at a time and never twice: where
    the records hold C_t copies of a token in all and the bag fewer, each record gets its share b_t / C_t of its own
    copies, so that the value does not depend on the order of the records. The token-weighted mean of the values
    is the multiset recall of the bag against all tokens of the batch.

    Chance: the expected recall of as many uniform draws of content tokens as the proposal holds, and at least as many
    as the truth does. An attack that proposes half the vocabulary thus meets the chance level of doing so.
    """

    summary: ClassVar[str] = "share of the private tokens recovered, in any order (multiset recall)"
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    bags: ClassVar[Literal["scored", "zero", "omitted"]] = "scored"

    def values(self, comparison: Comparison) -> list[float]:
        if not comparison.ordered:
            return _bag_values(comparison)
        pairs = zip(comparison.truth, comparison.guess, strict=True)
        return [overlap(counts(truth), counts(guess)) / len(truth) for truth, guess in pairs if len(truth)]

    def chance(self, comparison: Comparison) -> float | None:
        if not comparison.ordered:
            return mean(_bag_chances(comparison))
        vocabulary = content_vocabulary(comparison)
        pairs = zip(comparison.truth, comparison.guess, strict=True)
        return mean(
            [
                sum(
                    _expected_hits(count, max(len(truth), counts(guess).total()), vocabulary)
                    for count in counts(truth).values()
                )
                / len(truth)
                for truth, guess in pairs
                if len(truth)
            ]
        )


def _bag_values(comparison: Comparison) -> list[float]:
    bag = counts(comparison.guess[0])
    wanted = _wanted(comparison)
    share = {token: min(1.0, bag[token] / copies) for token, copies in wanted.items()}
    return [_weighted(truth.tolist(), share) for truth in comparison.truth if len(truth)]


def _bag_chances(comparison: Comparison) -> list[float]:
    wanted = _wanted(comparison)
    draws = max(wanted.total(), counts(comparison.guess[0]).total())
    vocabulary = content_vocabulary(comparison)
    share = {token: _expected_hits(copies, draws, vocabulary) / copies for token, copies in wanted.items()}
    return [_weighted(truth.tolist(), share) for truth in comparison.truth if len(truth)]


def _wanted(comparison: Comparison) -> Counter[int]:
    return sum((counts(truth) for truth in comparison.truth), Counter())


def _weighted(tokens: list[int], share: dict[int, float]) -> float:
    return sum(share[token] for token in tokens) / len(tokens)


def _expected_hits(count: int, draws: int, vocabulary: int) -> float:
    """E min(count, X) for X ~ Binomial(draws, 1 / vocabulary), as Σ_k P(X ≥ k) for k = 1 … count."""
    return sum(float(bdtrc(k - 1, draws, 1.0 / vocabulary)) for k in range(1, min(count, draws) + 1))
