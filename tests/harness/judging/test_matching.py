"""The assignment of proposals to records against exhaustive search."""

from __future__ import annotations

import itertools

import pytest
import torch

from gradleak.harness.judging.matching import match_images, match_texts

pytestmark = pytest.mark.oracle


def test_text_assignment_reaches_the_best_total_recall() -> None:
    rng = torch.Generator().manual_seed(3)
    for _ in range(40):
        texts = [torch.randint(0, 6, (int(n),), generator=rng) for n in torch.randint(1, 7, (7,), generator=rng)]
        truths, guesses = texts[:4], texts[4:]
        matched = match_texts([(t, t) for t in truths], [(g, g) for g in guesses])
        assert sorted(index for index in matched if index is not None) == [0, 1, 2]
        reached = sum(_recall(truths[i], guesses[j]) for i, j in enumerate(matched) if j is not None)
        best = max(
            sum(_recall(truths[i], guesses[j]) for j, i in enumerate(order))
            for order in itertools.permutations(range(4), 3)
        )
        assert reached == pytest.approx(best, abs=1e-4)


def _recall(truth: torch.Tensor, guess: torch.Tensor) -> float:
    return sum(min(int((truth == t).sum()), int((guess == t).sum())) for t in truth.unique()) / len(truth)


def test_equal_recall_is_settled_by_positions() -> None:
    truth, shuffled = torch.tensor([1, 2, 3]), torch.tensor([3, 1, 2])
    assert match_texts([(truth, truth), (shuffled, shuffled)], [(shuffled, shuffled), (truth, truth)]) == [1, 0]


def test_image_assignment_minimizes_the_total_error() -> None:
    rng = torch.Generator().manual_seed(4)
    truths, guesses = torch.rand(4, 1, 3, 3, generator=rng), torch.rand(4, 1, 3, 3, generator=rng)
    matched = match_images(list(truths), list(guesses))
    errors = (truths[:, None] - guesses[None]).double().square().mean(dim=(2, 3, 4))
    reached = sum(float(errors[i, j]) for i, j in enumerate(matched) if j is not None)
    best = min(sum(float(errors[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
    assert reached == pytest.approx(best, abs=1e-12)
    assert match_images(list(truths), []) == [None] * 4
