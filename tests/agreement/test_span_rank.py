"""Theory predicts the rank of the first layer's gradient; the update confirms it."""

from __future__ import annotations

import pytest
import torch
import transformers

from gradleak.core.batch import Batch
from gradleak.core.loss import CLASSIFICATION
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.models import Subject, read_anatomy
from gradleak.span.reading.observed_layer import first_layer


def subject_of(kind: str) -> Subject:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    module = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    return Subject(
        name=kind, module=module, anatomy=read_anatomy(module), tokenizer=None, loss=CLASSIFICATION, classes=2
    )


def components(ids: torch.Tensor) -> int:
    """Connected components of the graph that joins every token with the positions it occurs at."""
    parent: dict[tuple[str, int], tuple[str, int]] = {}

    def root(node: tuple[str, int]) -> tuple[str, int]:
        parent.setdefault(node, node)
        while parent[node] != node:
            node = parent[node]
        return node

    for row in ids.tolist():
        for position, token in enumerate(row):
            parent[root(("token", token))] = root(("position", position))
    return len({root(node) for node in list(parent)})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("words", [4, 8, 400])
def test_rank_is_tokens_plus_positions_minus_components(words: int, seed: int) -> None:
    """T + P − c for x = word + position under a normalization without bias (GPT-2 as initialized)."""
    subject = subject_of("gpt2")
    rng = derive(seed, words)
    ids = torch.randint(1, 1 + words, (3, 8), generator=rng)
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.tensor([0, 1, 0]))
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, rng)
    predicted = ids.unique().numel() + ids.shape[1] - components(ids)
    distinct = len({(p, t) for row in ids.tolist() for p, t in enumerate(row)})
    found = first_layer(update, Model(subject=subject), noise_std=lambda _: 0.0, summands=ids.numel())
    assert found.space.rank == min(predicted, distinct)


@pytest.mark.parametrize("seed", range(3))
def test_rank_is_the_number_of_tokens_where_positions_are_rotations(seed: int) -> None:
    subject = subject_of("llama")
    rng = derive(seed)
    ids = torch.randint(1, 9, (3, 8), generator=rng)
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.tensor([0, 1, 0]))
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, rng)
    found = first_layer(update, Model(subject=subject), noise_std=lambda _: 0.0, summands=ids.numel())
    assert found.space.rank == ids.unique().numel()
