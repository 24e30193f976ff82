"""The joint search under noise: the sparsest explanation against planted ones, and records that the search by prefixes misses."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.attack import Status
from gradleak.core.rng import derive
from gradleak.defenses.gaussian import Gaussian
from gradleak.span.noise.sparse_selection import omp_select
from tests.support.span import as_set, attack, make_batch, make_subject

pytestmark = pytest.mark.oracle

FEATURES, COLUMNS, TOKENS, CANDIDATES, RATE = 96, 288, 24, 480, 1e-6


def planted(strength: float, *, parallel: bool, trial: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates of which the first are members; error signals of four records, nearly parallel within each or independent."""
    rng = derive(trial, "sparse")
    x = torch.nn.functional.normalize(torch.randn(CANDIDATES, FEATURES, generator=rng, dtype=torch.float64), dim=1)
    errors = torch.randn(TOKENS, COLUMNS, generator=rng, dtype=torch.float64)
    if parallel:
        shared = torch.randn(4, COLUMNS, generator=rng, dtype=torch.float64)
        errors = shared.repeat_interleave(TOKENS // 4, dim=0) + 0.1 * errors
    noise = torch.randn(FEATURES, COLUMNS, generator=rng, dtype=torch.float64)
    return x, strength * x[:TOKENS].T @ errors + noise


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("trial", range(3))
def test_finds_every_planted_member_and_no_other(parallel: bool, trial: int) -> None:
    x, gradient = planted(4.0, parallel=parallel, trial=trial)
    assert set(omp_select(x, gradient, false_alarms=RATE).tolist()) == set(range(TOKENS))


def test_directions_drown_where_tokens_do_not() -> None:
    x, gradient = planted(4.0, parallel=True, trial=0)
    above = torch.linalg.svdvals(gradient) > FEATURES**0.5 + COLUMNS**0.5
    assert int(above.sum()) < TOKENS
    assert len(omp_select(x, gradient, false_alarms=RATE)) == TOKENS


def test_a_candidate_that_is_zero_is_no_member() -> None:
    x, gradient = planted(4.0, parallel=False, trial=0)
    x[TOKENS] = 0.0
    assert set(omp_select(x, gradient, false_alarms=RATE).tolist()) == set(range(TOKENS))


@pytest.mark.parametrize("trial", range(5))
def test_noise_alone_has_no_members(trial: int) -> None:
    x, gradient = planted(0.0, parallel=False, trial=trial)
    assert not len(omp_select(x, gradient, false_alarms=RATE))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.03, 0.1, 0.3])
def test_claims_completeness_only_where_it_is_true(noise: float, seed: int) -> None:
    subject = make_subject("gpt2", seed=seed)
    batch = make_batch(subject, [10, 7], seed=seed)
    found = attack(subject, batch, stages=(Gaussian(relative_std=noise),), seed=seed)
    if found.status is Status.UNDECIDED:
        assert "cannot be told" in found.message
    if found.status is Status.CONVERGED and found.ordered:
        assert as_set(found.records) <= as_set(batch.records())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_what_trained_tables_lead_to_holds_no_false_token(noise: float, seed: int) -> None:
    """Tokens come from rows at a rate of false ones of 1e-3 a table: in six batches none is expected."""
    subject = make_subject("gpt2", seed=seed)
    batch = make_batch(subject, [10, 7], seed=seed)
    found = attack(subject, batch, stages=(Gaussian(relative_std=noise),), seed=seed)
    assert found.status is Status.UNDECIDED
    assert found.records
    truth = set(batch.inputs[batch.mask].tolist())
    assert {token for record in found.records for token in record.tolist()} <= truth
