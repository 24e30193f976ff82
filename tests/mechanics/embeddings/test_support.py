"""The embedding ledger: rows and positions against batches that are known."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.embeddings.support import order_of_one, token_support

pytestmark = pytest.mark.oracle


def ledger(ids: torch.Tensor, signals: torch.Tensor, vocab: int) -> torch.Tensor:
    return torch.zeros(vocab, signals.shape[1]).index_add(0, ids, signals)


def test_support_and_order_with_repeated_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([7, 3, 7, 9, 3, 7, 1])
    signals = torch.randn(len(ids), 16, generator=generator) * torch.logspace(-3, 0, len(ids))[:, None]
    rows, positions = ledger(ids, signals, 50), ledger(torch.arange(len(ids)), signals, 12)
    support = token_support(rows)
    assert support.exact
    assert set(support.ids.tolist()) == set(ids.tolist())
    found = order_of_one(rows, positions, support.ids)
    assert found is not None
    assert found.tolist() == ids.tolist()


def test_order_abstains_when_two_records_share_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 2, 3, 4], [5, 2, 6, 1]])
    signals = torch.randn(8, 16, generator=generator)
    rows = ledger(ids.flatten(), signals, 20)
    positions = ledger(torch.arange(4).repeat(2), signals, 4)
    assert order_of_one(rows, positions, token_support(rows).ids) is None


def test_support_in_noise_has_the_stated_false_alarm_rate() -> None:
    """400 pure-noise tables at family-wise 5 %: above 40 alarms has probability below 1e-4 if the rate holds."""
    generator = torch.Generator().manual_seed(0)
    alarms = sum(token_support(torch.randn(300, 64, generator=generator)).ids.numel() > 0 for _ in range(400))
    assert alarms <= 40


def test_support_in_noise_finds_strong_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 64, generator=generator)
    rows[[5, 77, 1999]] *= 3.0
    support = token_support(rows)
    assert not support.exact
    assert set(support.ids.tolist()) == {5, 77, 1999}


def test_support_on_a_background_of_no_known_law_has_the_stated_false_alarm_rate() -> None:
    """200 tables of rows whose energies are log-normal, as a tied head leaves them, at family-wise 5 %.

    Above 24 alarms has probability below 1e-4 at 5 %; at 5 % for each row every table would raise alarms.
    """
    rng = torch.Generator().manual_seed(1)
    alarms = 0
    for _ in range(200):
        rows = torch.nn.functional.normalize(torch.randn(2000, 4, generator=rng), dim=1)
        rows = rows * torch.randn(2000, 1, generator=rng).exp()
        support = token_support(rows, white=False)
        assert not support.exact and not support.reliable
        alarms += support.ids.numel() > 0
    assert 1 <= alarms <= 24
