"""Gauss–Newton recovers a sentence from a real block in a few iterations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.attacks.attention_exact.refine import AttentionMatching
from gradleak.attacks.attention_exact.solve import single_head
from gradleak.attacks.gauss_newton import GaussNewton
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.mechanics.attention.softmax import Heads
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.oracle


def instance(n: int, d: int, heads: int, seed: int) -> tuple[Heads, Tensor, Tensor, torch.Generator]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    x, b, k, root = normal(n, d), normal(n, d), d // heads, math.sqrt(d)
    if heads == 1:
        return single_head(normal(d, d) / root, normal(d, d) / root, 1 / root), x, b, g
    q, key, v, o = (normal(heads, *shape) / root for shape in ((d, k), (d, k), (d, k), (k, d)))
    return Heads(query=q, key=key, value=v, output=o, scale=1 / math.sqrt(k)), x, b, g


def batch(n: int, d: int, trials: int, heads: int = 1) -> tuple[AttentionMatching, Tensor, torch.Generator]:
    made = [instance(n, d, heads, 1000 + i) for i in range(trials)]
    layers = Heads(
        query=torch.stack([m[0].query for m in made]),
        key=torch.stack([m[0].key for m in made]),
        value=torch.stack([m[0].value for m in made]),
        output=torch.stack([m[0].output for m in made]),
        scale=made[0][0].scale,
    )
    x, b = torch.stack([m[1] for m in made]), torch.stack([m[2] for m in made])
    observed = layers.layer().at(x, b).gradient().flat()
    problem = AttentionMatching(heads=layers, observed=observed, seq=n, out=d, targets=b, collapsed=True)
    return problem, x.flatten(1), made[0][3]


def test_gauss_newton_recovers_a_sentence_from_a_real_block_in_a_few_iterations() -> None:
    """A one-block GPT-2: every token, the objective at the float32 floor within 12 linearizations (L-BFGS needs 60)."""
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    subject = load_subject("random:gpt2", loss="causal-lm", settings=settings)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    ids = torch.randint(5, 200, (1, 4), generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    update = trainer.update(batch, torch.Generator().manual_seed(0))
    facts = {"subject": subject, "trainer": trainer, "stages": (), "batch_size": 1, "seq_len": 4}
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    found = GaussNewton(iterations=12)(observation, rng=torch.Generator().manual_seed(1))
    assert found.objective is not None and found.objective < 1e-5
    assert torch.equal(found.records[0], ids[0])
