"""Joint evidence of a reading: nothing for what is common, nothing for what was not weighed."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.span.likelihood.gradient_likelihood import evidence

pytestmark = pytest.mark.oracle


def test_what_is_common_to_a_prefix_or_a_token_is_no_evidence() -> None:
    rng = derive(3, "evidence")
    weights = torch.randn(9, 9, 3, generator=rng, dtype=torch.float64) * 0.2
    weights[torch.arange(9), torch.arange(9)] -= 1.0
    rows, columns = (5 * torch.randn(9, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    shifted = weights + rows.unsqueeze(1) + columns.unsqueeze(0)
    assert torch.equal(evidence(shifted).argmax(dim=1), torch.arange(9))
    # Each layer on its own is misled by the common parts.
    assert not torch.equal(shifted[..., 0].argmin(dim=1), torch.arange(9))


def test_what_was_not_weighed_has_no_evidence() -> None:
    weights = torch.randn(4, 5, 2, generator=derive(0, "evidence"), dtype=torch.float64)
    weights[0, 3] = torch.nan
    found = evidence(weights)
    assert found[0, 3] == -torch.inf
    assert bool(found[1:].isfinite().all())
