"""The auditor audited: every known mistake is flagged, and correct mechanisms are left alone. Gradients of a transformer."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.privacy.bounds.bayes import Rate
from gradleak.privacy.bounds.candidates import Candidates
from tests.support.planted_bugs import BUGS, CORRECT, Claim, examine, flagged, predict

pytestmark = pytest.mark.oracle

SETTINGS = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 260, "n_positions": 16}
CANDIDATES, TOKENS = 64, 6


@cache
def toy() -> Claim:
    """A random two-layer causal model on random sentences, clipped at the median norm, claimed z = 0.5."""
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SETTINGS, seed=0)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    ids = torch.randint(60, (CANDIDATES, TOKENS), generator=torch.Generator().manual_seed(0))
    rows: list[np.ndarray] = []
    sizes: dict[str, int] = {}
    for one in ids:
        batch = Batch(inputs=one[None], mask=torch.ones(1, TOKENS, dtype=torch.bool), labels=one[None])
        update = trainer.update(batch, torch.Generator())
        rows.append(torch.cat([update[name].flatten() for name in trainer.names()]).numpy())
    # One block per layer and table: parameters that stand together and share the first parts of their names.
    for name in trainer.names():
        block = ".".join(name.split(".")[:3]) if ".h." in name else name.rpartition(".")[0]
        sizes[block] = sizes.get(block, 0) + subject.parameters()[name].numel()
    ends = np.cumsum(list(sizes.values()))
    blocks = {name: slice(int(end) - sizes[name], int(end)) for name, end in zip(sizes, ends, strict=True)}
    assert subject.anatomy.token_embedding is not None
    table = subject.anatomy.token_embedding.rpartition(".")[0]
    gradients = np.stack(rows).astype(np.float64)
    clip = float(np.median(np.linalg.norm(gradients, axis=1)))
    return Claim(gradients=gradients, blocks=blocks, table=table, clip=clip, noise_multiplier=0.5)


@cache
def predicted() -> dict[str, tuple[Candidates, Rate]]:
    return predict(toy(), np.random.default_rng(10), trials=50_000)


@pytest.mark.parametrize("bug", BUGS)
def test_every_mistake_is_flagged(bug: str) -> None:
    rng = np.random.default_rng(0)
    found = examine(toy(), BUGS[bug], predicted(), rng, trials=2000)
    assert flagged(found), {name: each.p_value for name, each in found.items()}


def test_two_correct_runs_are_consistent_and_close_to_optimal() -> None:
    rng = np.random.default_rng(1)
    for _ in range(2):
        found = examine(toy(), CORRECT, predicted(), rng, trials=1000)
        assert not flagged(found)
        assert found[""].measured.low <= found[""].predicted.high
        assert found[""].measured.high >= found[""].predicted.low
        assert 0.0 < found[""].mu_lower <= found[""].mu_claimed


def test_the_unnoised_table_shows_in_its_own_block() -> None:
    rng = np.random.default_rng(2)
    found = examine(toy(), BUGS["embedding left un-noised"], predicted(), rng, trials=500)
    assert found[toy().table].measured.value > 0.9
    assert found[toy().table].p_value < 1e-9


@pytest.mark.slow
def test_false_alarms_over_200_correct_runs() -> None:
    """At most 5 % of 200, as promised for the audit as a whole, its six views together."""
    rng = np.random.default_rng(3)
    alarms = sum(flagged(examine(toy(), CORRECT, predicted(), rng, trials=200)) for _ in range(200))
    assert alarms <= 10
