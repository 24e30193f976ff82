"""The space that `gauss_newton` searches holds the truth, is smaller, and is refused where it could miss a token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge
from gradleak.matching.search_space import SearchSpace, embeddings, token_table, within_span
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}


def pose(kind: str, loss: str = "classification", **settings: int) -> tuple[SearchSpace, SearchSpace, Subject, Tensor]:
    """The whole space and the restricted one for two records of six tokens, and those tokens."""
    subject = load_subject(f"random:{kind}", loss=loss, settings={**SMALL, **settings})
    ids = torch.randperm(250, generator=torch.Generator().manual_seed(1))[:12].reshape(2, 6) + 20
    labels = ids if loss == "causal-lm" else torch.tensor([0, 1])
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, torch.Generator().manual_seed(0))
    view = Knowledge(facts={}).view(frozenset({"framing", "mask"}))
    whole = embeddings(view, token_table(subject), 2, 6)
    return whole, within_span(whole, subject, update), subject, ids


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "opt"])
def test_the_truth_lies_in_a_space_of_about_as_many_directions_as_tokens(kind: str) -> None:
    whole, space, subject, ids = pose(kind)
    assert space.basis is not None and space.shape[:2] == whole.shape[:2]
    # 12 inputs; a bias takes a direction from the conditions, and centering adds one that is free.
    assert 12 <= space.shape[-1] <= 14
    truth = subject.embed(ids).detach()
    moved = (truth - space.center) @ space.basis.T
    assert torch.dist(space.center + moved @ space.basis, truth) < 1e-3 * truth.norm()
    # A wrong batch does not lie there.
    wrong = subject.embed(ids.roll(1, 0) + 1).detach()
    left = wrong - space.center
    assert (left - (left @ space.basis.T) @ space.basis).norm() > 0.3 * wrong.norm()


@pytest.mark.parametrize(
    ("kind", "loss", "settings"),
    [
        ("gpt2", "causal-lm", {}),
        ("bert", "classification", {"num_hidden_layers": 1}),
        ("bert", "classification", {"hidden_size": 12}),
    ],
)
def test_where_the_span_may_miss_a_token_everything_is_searched(kind: str, loss: str, settings: dict[str, int]) -> None:
    """No signal for the last token; one block and a mixture; a layer that is full."""
    whole, space, _, _ = pose(kind, loss, **settings)
    assert space is whole
