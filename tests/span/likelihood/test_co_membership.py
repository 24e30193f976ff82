"""Tokens of one record are told by their error signals, whatever all have in common."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.span.likelihood.co_membership import SameRecordEvidence

pytestmark = pytest.mark.oracle


def _records(count: int, length: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens 0 … count · length − 1, those of one record near a signal of its own, all near a common one."""
    rng = derive(seed, "records")
    own, common = torch.randn(count, 1, width, generator=rng), 5 * torch.randn(width, generator=rng)
    rows = common + own + 0.7 * torch.randn(count, length, width, generator=rng)
    return rows.flatten(0, 1), torch.arange(count * length).view(count, length)


def test_tokens_of_one_record_are_kin_whatever_all_have_in_common() -> None:
    rows, records = _records(40, 4, 64, 0)
    same_record = SameRecordEvidence.of(rows, torch.arange(160), 200)
    found = same_record.weigh(records[:, :2], records[:, 2]).sum(dim=-1)
    assert torch.equal(found.argmin(dim=1), torch.arange(40))
    assert bool(
        (same_record.weigh(records[:, :2], torch.tensor([199])) == 0).all()
    )  # of a token that does not occur nothing is known


def test_evidence_is_asked_of_the_last_three_tokens_of_a_prefix_each_on_its_own() -> None:
    """Against the formula of the module written out: whitened rows, cosines, one column for every token that is asked."""
    rows, _ = _records(6, 5, 16, 1)
    evidence = SameRecordEvidence.of(rows, torch.arange(30), 40)
    prefixes, tokens = torch.tensor([[0, 7, 3, 21, 9], [5, 6, 1, 2, 30]]), torch.tensor([4, 11, 33])
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    moment = unit.T @ unit
    values, vectors = torch.linalg.eigh(moment + moment.trace() / 16 * torch.eye(16))
    white = torch.nn.functional.normalize(unit @ vectors @ torch.diag(values.rsqrt()) @ vectors.T, dim=1)
    white = torch.cat((white, torch.zeros(10, 16)))  # tokens that do not occur
    wanted = torch.stack(
        [torch.stack([-(white[prefix[-k]] * white[tokens]).sum(1) for k in (3, 2, 1)], dim=1) for prefix in prefixes]
    )
    torch.testing.assert_close(evidence.weigh(prefixes, tokens), wanted, rtol=0, atol=1e-5)


def test_a_short_prefix_is_asked_whole() -> None:
    rows, records = _records(6, 5, 16, 1)
    evidence = SameRecordEvidence.of(rows, torch.arange(30), 40)
    assert evidence.weigh(records[:, :2], records[0, 3:]).shape == (6, 2, 2)
