"""ROUGE on decoded text, the number that most papers on text recovery report. Must not know the three metrics.

Words are maximal runs of lower-case ASCII letters and digits, without stemming: the tokenization of the reference
implementation. Text in other scripts therefore has no words, and no value; the token metrics count it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from gradleak.core.metric import Comparison
from gradleak.metrics._sequence import harmonic, lcs_length

_WORD = re.compile(r"[a-z0-9]+")

Words = list[str]


def words(text: str) -> Words:
    """The words of a text."""
    return _WORD.findall(text.lower())


def rouge_n(truth: Words, guess: Words, order: int) -> float:
    """F-measure of the multisets of runs of ``order`` words; 0 if either has none."""
    left, right = _runs(truth, order), _runs(guess, order)
    return harmonic((left & right).total(), left.total(), right.total())


def rouge_l(truth: Words, guess: Words) -> float:
    """F-measure of the longest common subsequence of words; 0 if either has none."""
    return harmonic(lcs_length(truth, guess), len(truth), len(guess))


def rouge_values(comparison: Comparison, measure: Callable[[Words, Words], float], *, least: int) -> list[float]:
    """``measure`` for every record of at least ``least`` words; 0 where nothing was proposed."""
    values: list[float] = []
    for truth, guess in zip(comparison.truth, comparison.guess, strict=True):
        reference = words(comparison.decode(truth))
        if len(reference) >= least:
            values.append(0.0 if guess is None else measure(reference, words(comparison.decode(guess))))
    return values


def _runs(text: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(text[start:] for start in range(order)), strict=False))
