"""The longest common subsequence against the textbook's table."""

from __future__ import annotations

import itertools
import random

import pytest

from gradleak.metrics._sequence import lcs_length

pytestmark = pytest.mark.oracle


def test_lcs_equals_the_textbook_table() -> None:
    source = random.Random(11)
    for _ in range(300):
        left, right = ([source.randrange(4) for _ in range(source.randint(0, 80))] for _ in range(2))
        table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
        for i, j in itertools.product(range(len(left)), range(len(right))):
            step = table[i][j] + 1 if left[i] == right[j] else max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = step
        assert lcs_length(left, right) == table[-1][-1]
