"""What a run promises beyond the command line: the Python face, plans that round-trip, draws that depend on names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import gradleak

pytestmark = pytest.mark.contract

TEXTS = ["the surgery is on tuesday", "please wire the money"]


@pytest.fixture(scope="module")
def module() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return BertForSequenceClassification(config)


def test_more_cells_do_not_change_those_that_were_there(module: BertForSequenceClassification, tmp_path: Path) -> None:
    """Draws depend on the cell's name: another attack or defense beside it changes nothing."""
    few = gradleak.audit(module, TEXTS, attacks="tag(iterations=3)", defenses="gaussian(relative_std=1.0)")
    many = gradleak.audit(
        module,
        TEXTS,
        attacks=["token_support", "tag(iterations=3)"],
        defenses=["laplace(scale=0.001)", "gaussian(relative_std=1.0)"],
    )
    by_cell = {record.cell: record for record in many.records}
    for record in few.records:
        assert by_cell[record.cell].status == record.status
        assert by_cell[record.cell].scores == record.scores
