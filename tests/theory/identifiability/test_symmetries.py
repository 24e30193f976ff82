"""Changes of the data that no gradient sees: which models have which, and that what holds is invisible in float64 too."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.theory.identifiability.symmetries import Invariance, directions, probe_invariances
from tests.support.tiny import text_model

pytestmark = pytest.mark.oracle


def holding(kind: str, loss: str = "classification") -> set[str]:
    return {i.name for i in probe_invariances(text_model(kind, loss=loss), derive(0, "symmetries")) if i.holds}


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
def test_the_order_of_records_is_never_seen_and_that_of_tokens_always(kind: str) -> None:
    found = holding(kind)
    assert "order of the records" in found
    assert not found & {"order of the tokens in a record", "sign of every embedding"}


def test_what_a_first_normalization_removes_is_not_seen() -> None:
    """LayerNorm reads every sum of BERT and of GPT-2, so a constant is lost; RMSNorm keeps it. The length is not lost: the
    gradients of the tables are taken before the normalization and shrink with it.
    """
    constant, length = (
        "a constant added to every feature of a token",
        "the length of a token's embedding with its position",
    )
    assert [constant in holding(kind) for kind in ("bert", "gpt2", "llama")] == [True, True, False]
    assert length not in holding("bert") | holding("gpt2") | holding("llama")


def test_a_change_holds_if_it_moves_the_gradient_a_thousand_times_less_than_a_random_one() -> None:
    for ratio, holds in ((0.99e-3, True), (1.01e-3, False)):
        assert Invariance(name="x", continuous=True, dimensions=1, ratio=ratio).holds is holds


def test_directions_are_as_long_as_embeddings_are() -> None:
    subject, ids = text_model("bert"), torch.tensor([[5, 6, 7]])
    size = subject.embed(ids).norm()
    for direction in directions(subject, ids).values():
        assert direction.shape == subject.embed(ids).shape
        assert 0.05 * size < direction.norm() < 20 * size
