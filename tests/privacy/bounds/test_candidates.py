"""Candidates: duplicates are one, and bad matrices are refused."""

from __future__ import annotations

import numpy as np
import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.bounds import bayes
from gradleak.privacy.bounds.candidates import Candidates

pytestmark = pytest.mark.oracle


def test_duplicates_are_one_candidate() -> None:
    gradients = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    merged = Candidates.uniform(gradients @ gradients.T).merged()
    assert merged.count == 3
    assert merged.kappa == pytest.approx(0.5)
    assert merged.prior.tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert bayes.optimal(merged, 1e-3, np.random.default_rng(0), trials=100).success.value == 1.0


@pytest.mark.parametrize(
    ("gram", "prior", "message"),
    [
        (np.eye(2), np.array([0.5]), "K×K"),
        (np.array([[1.0, 0.2], [0.1, 1.0]]), np.array([0.5, 0.5]), "symmetric"),
        (np.array([[np.nan, 0.0], [0.0, 1.0]]), np.array([0.5, 0.5]), "finite"),
        (4 * np.eye(2), np.array([0.5, 0.5]), "Clip first"),
        (np.eye(2), np.array([0.5, 0.6]), "sum to 1"),
        (np.eye(2), np.array([0.0, 1.0]), "positive"),
    ],
)
def test_bad_candidates(gram: np.ndarray, prior: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Candidates(gram=gram, prior=prior)
