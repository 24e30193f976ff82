"""Which proposal stands for which record is decided once, one-to-one, for all metrics. Must not know any metric.

The pairing maximizes the sum of similarities (Hungarian method). Truths and proposals are put into a canonical order
first, so that ties are broken by content and the scores cannot depend on the order of records in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradleak.metrics._pixels import mean_squared_error
from gradleak.metrics._sequence import counts, overlap

_TIE_BREAK = 1e-6
"""Weight of positional agreement: far below the step of any recall (one token in a record)."""

Text = tuple[Tensor, Tensor]
"""The content tokens of a text, and its tokens as they stand in their positions, special ones included."""


def match_texts(truths: Sequence[Text], guesses: Sequence[Text]) -> list[int | None]:
    """For each truth the index of its proposal or None; no index twice, and none left over while a truth has none.

    Similarity is the share of the truth's content tokens that the proposal holds (multisets), ties broken by the
    share of positions that agree.
    """
    keys = [[[part.tolist() for part in text] for text in texts] for texts in (truths, guesses)]
    return _match(keys, lambda row, column: _text_similarity(truths[row], guesses[column]))


def match_images(truths: Sequence[Tensor], guesses: Sequence[Tensor]) -> list[int | None]:
    """As ``match_texts``, with the negative mean squared error as similarity."""
    keys = [[image.flatten().tolist() for image in images] for images in (truths, guesses)]
    return _match(keys, lambda row, column: -mean_squared_error(truths[row], guesses[column]))


def _match(keys: Sequence[Sequence[Any]], similarity: Callable[[int, int], float]) -> list[int | None]:
    """Pairs rows with columns after sorting both by their ``keys``."""
    rows, columns = (sorted(range(len(side)), key=side.__getitem__) for side in keys)
    matched: list[int | None] = [None] * len(rows)
    if not columns:
        return matched
    weights = np.array([[similarity(row, column) for column in columns] for row in rows])
    for row, column in zip(*linear_sum_assignment(weights, maximize=True), strict=True):
        matched[rows[row]] = columns[column]
    return matched


def _text_similarity(truth: Text, guess: Text) -> float:
    if not len(truth[0]):
        return 0.0
    recall = overlap(counts(truth[0]), counts(guess[0])) / len(truth[0])
    return recall + _TIE_BREAK * (_agreement(truth[0], guess[0]) + _agreement(truth[1], guess[1])) / 2.0


def _agreement(truth: Tensor, guess: Tensor) -> float:
    shared = min(len(truth), len(guess))
    return int((truth[:shared] == guess[:shared]).sum()) / max(len(truth), len(guess), 1)
