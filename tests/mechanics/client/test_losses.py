"""The grouped losses against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from gradleak.core.batch import IGNORED, soft_labels
from gradleak.mechanics.client.losses import group_losses

pytestmark = pytest.mark.oracle


def test_classification_equals_cross_entropy_per_group() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    found = group_losses(logits, soft_labels(labels, 3), "classification", groups=2)
    expected = torch.stack([cross_entropy(logits[i : i + 3], labels[i : i + 3]) for i in (0, 3)])
    torch.testing.assert_close(found, expected)


def test_language_modeling_shifts_and_averages_over_real_targets() -> None:
    logits = torch.randn(4, 5, 7)
    labels = torch.randint(0, 7, (4, 5))
    labels[1, 3:] = IGNORED
    labels[2, 1:4] = IGNORED
    found = group_losses(logits, soft_labels(labels, 7), "causal-lm", groups=2)
    expected = [
        cross_entropy(logits[i : i + 2, :-1].flatten(0, 1), labels[i : i + 2, 1:].flatten(), ignore_index=IGNORED)
        for i in (0, 2)
    ]
    torch.testing.assert_close(found, torch.stack(expected))


def test_masked_lm_does_not_shift() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.full((2, 5), IGNORED)
    labels[0, 2], labels[1, 4] = 3, 6
    found = group_losses(logits, soft_labels(labels, 7), "masked-lm")
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(found, expected.unsqueeze(0))
