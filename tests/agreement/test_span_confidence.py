"""What `span` claims of its tokens is held against the truth: expected and actual numbers of right tokens must agree, and claims
that are made bolder must fail the same check."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from gradleak.attacks.span import Span
from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE
from tests.support.span import make_batch, make_subject

NOISES, SEEDS = (0.1, 0.3, 1.0), range(40, 50)
RECORDS, LENGTH, VOCABULARY = 4, 8, 500
SETTINGS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "initializer_range": 0.05,
}


def proposed(noise: float, seed: int) -> tuple[Reconstruction, list[list[int]]]:
    """The attack is told three times the number of records, so that it proposes more than it should."""
    subject = load_subject("random:gpt2", loss="classification", settings=SETTINGS, seed=seed)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (RECORDS,), generator=derive(seed, "lengths"))
    mask = torch.arange(LENGTH) < lengths.index_fill(0, torch.tensor([0]), LENGTH).unsqueeze(1)
    ids = torch.randint(3, VOCABULARY, mask.shape, generator=derive(seed, "ids")).masked_fill(~mask, 0)
    batch = Batch(inputs=ids, mask=mask, labels=torch.arange(RECORDS) % 2)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "training"))
    released = Gaussian(relative_std=noise).apply(update, derive(seed, "noise"))
    facts = {"subject": subject, "batch_size": 3 * RECORDS, "seq_len": LENGTH}
    found = Span()(Observation(update=released, knowledge=Knowledge(facts=facts)), rng=derive(seed, "span"))
    return found, [record.tolist() for record in batch.records()]


def right(found: Reconstruction, truth: list[list[int]]) -> list[bool]:
    """Whether the record matched to each proposal, one-to-one, holds its token in this place."""
    records = [ids.tolist() for ids in found.records]
    agree = np.array([[sum(a == b for a, b in zip(true, ids, strict=False)) for true in truth] for ids in records])
    rows, columns = linear_sum_assignment(agree, maximize=True)
    matched = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return [
        row in matched and p < len(truth[matched[row]]) and truth[matched[row]][p] == token
        for row, ids in enumerate(records)
        for p, token in enumerate(ids)
    ]


@cache
def measured() -> tuple[tuple[NDArray, NDArray], ...]:
    """Claims and truth of every case that proposes records."""
    cases = []
    for noise in NOISES:
        for seed in SEEDS:
            found, truth = proposed(noise, seed)
            if found.ordered and found.records:
                claims = torch.cat(found.confidence).numpy()
                cases.append((claims, np.array(right(found, truth), float)))
    return tuple(cases)


def excess(cases: tuple[tuple[NDArray, NDArray], ...], boldness: float = 1.0) -> float:
    """How far the claims exceed the truth, in standard errors; tokens of one case stand or fall together."""
    differences = np.array([(1 - (1 - claims) ** boldness - truth).sum() for claims, truth in cases])
    return float(differences.sum() / np.sqrt(np.square(differences).sum()))


def test_claims_are_neither_bold_nor_empty() -> None:
    cases = measured()
    claims, truth = (np.concatenate(side) for side in zip(*cases, strict=True))
    assert len(cases) >= 20 and 0.1 < truth.mean() < 0.95, "the cases must hold right and wrong tokens"
    assert excess(cases) < 3.0
    assert ((claims - truth) ** 2).mean() < truth.mean() * (1 - truth.mean()), "better than to know the rate alone"


def test_bolder_claims_would_not_pass() -> None:
    """Every doubt squared."""
    assert excess(measured(), boldness=2.0) > 3.0


@pytest.mark.parametrize("level", [0.5, 0.9, 0.97])
def test_what_is_claimed_above_a_level_holds(level: float) -> None:
    """Within three standard errors; a token of one case stands or falls with the others."""
    sure = tuple((claims[claims >= level], truth[claims >= level]) for claims, truth in measured())
    assert sum(len(claims) for claims, _ in sure) > 20
    assert excess(sure) < 3.0


def test_a_search_without_noise_claims_what_its_tests_guarantee() -> None:
    subject = make_subject("gpt2", seed=1)
    batch = make_batch(subject, [8, 6], seed=1)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(1, "training"))
    facts = {"subject": subject, "batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
    found = Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(1, "span"))
    assert found.status is Status.CONVERGED and len(found.confidence) == 2
    assert all(float(sure.min()) == 1 - FALSE_ALARM_RATE for sure in found.confidence)
