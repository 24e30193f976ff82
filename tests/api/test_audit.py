"""The Python face: an own model in two lines, batches as tokenizers give them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import gradleak
from gradleak.attacks.token_support import TokenSupport
from gradleak.core.errors import DataError, UsageError
from gradleak.defenses.clip import Clip
from gradleak.defenses.sign import Sign

pytestmark = pytest.mark.contract

TEXTS = ["the surgery is on tuesday", "please wire the money"]


@pytest.fixture(scope="module")
def module() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return BertForSequenceClassification(config)


def test_an_own_model_is_audited_in_two_lines(module: BertForSequenceClassification, tmp_path: Path) -> None:
    audit = gradleak.audit(module, TEXTS[:1], attacks="token_support", defenses=["sign()"], out=tmp_path / "run")
    assert audit.verdict.leak
    assert len(audit.records) == 2
    assert audit.table().row_count == 2
    assert audit.report().is_file()


def test_without_a_folder_the_run_is_kept_until_it_is_saved(
    module: BertForSequenceClassification, tmp_path: Path
) -> None:
    audit = gradleak.audit(module, TEXTS[:1], attacks="token_support")
    assert audit.save(tmp_path / "kept").is_file()
    assert audit.plan.batch_size == 1
    with pytest.raises(UsageError, match="exists"):
        audit.save(tmp_path / "kept")


def test_a_tokenizer_s_output_is_a_batch(module: BertForSequenceClassification) -> None:
    ids = torch.tensor([[101, 1996, 5970, 102], [101, 2003, 102, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([0, 1])}
    audit = gradleak.audit(module, batch, attacks="token_support")
    assert audit.records[0].scores["token_recall"]["value"] == 1.0


@pytest.mark.parametrize("batch", [[], [" "], {"pixels": 1}])
def test_an_unusable_batch_is_refused(module: BertForSequenceClassification, batch: object) -> None:
    with pytest.raises(DataError):
        gradleak.audit(module, batch, attacks="token_support")


def test_methods_are_objects_or_text(module: BertForSequenceClassification, tmp_path: Path) -> None:
    text = gradleak.audit(
        module, TEXTS[:1], attacks="token_support", defenses=["clip(max_norm=1.0)+sign()", "sign()"], out=tmp_path / "a"
    )
    objects = gradleak.audit(
        module,
        TEXTS[:1],
        attacks=TokenSupport(),
        defenses=[(Clip(max_norm=1.0), "sign()"), Sign()],
        out=tmp_path / "b",
    )
    assert [r.cell for r in objects.records] == [r.cell for r in text.records]
    assert [r.scores for r in objects.records] == [r.scores for r in text.records]
