"""What an adversary may be told: never the text itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradleak.harness.request.prepare import Request, prepare
from gradleak.harness.running.runner import run
from gradleak.harness.running.store import RunFolder

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model", "loss", "told"),
    [("random:bert", "classification", True), ("random:gpt2", "causal-lm", False), ("random:bert", "masked-lm", False)],
)
def test_labels_are_told_only_where_they_are_not_the_text(tmp_path: Path, model: str, loss: str, told: bool) -> None:
    request = Request(
        model=model,
        loss=loss,
        attacks="token_support",
        threat="informed_server",
        batch_size=2,
        max_length=8,
        settings=TINY,
    )
    prepared = prepare(request)
    with RunFolder(tmp_path / "run", prepared.plan) as store:
        run(prepared.plan, prepared.subject, prepared.source, store)
        facts = [set(record.knowledge["facts"]) for record in store.records]
    assert facts
    assert all(("labels" in held) == told for held in facts)
