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
