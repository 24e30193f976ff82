"""A token that was taken from its own record goes back to it."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.span.beyond.reassignment import Assignment, reassign
from gradleak.span.likelihood.co_membership import SameRecordEvidence

pytestmark = pytest.mark.oracle


def _records(count: int, length: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens 0 … count · length − 1, those of one record near a signal of its own, all near a common one."""
    rng = derive(seed, "records")
    own, common = torch.randn(count, 1, width, generator=rng), 5 * torch.randn(width, generator=rng)
    rows = common + own + 0.7 * torch.randn(count, length, width, generator=rng)
    return rows.flatten(0, 1), torch.arange(count * length).view(count, length)


def test_a_token_taken_from_its_own_record_goes_back() -> None:
    rows, records = _records(40, 6, 64, 1)
    same_record = SameRecordEvidence.of(rows, torch.arange(240), 240)
    shares = torch.full((240, 6), 0.02, dtype=torch.float64)
    shares[records.flatten(), torch.arange(6).repeat(40)] = 0.9
    tokens, evidence = records.clone(), torch.full((40, 6), 9.0, dtype=torch.float64)
    tokens[3, 2], evidence[3, 2] = tokens[3, 3], 1.0  # held twice
    tokens[7, 4], evidence[7, 4] = tokens[8, 4], 2.0  # another record's
    held = Assignment(tokens=tokens, evidence=evidence)
    assert held.contested(shares).nonzero().tolist() == [[3, 2], [7, 4]]
    found = reassign(held, shares, same_record)
    assert torch.equal(found.tokens, records)
    assert bool((found.evidence > 0).all())
