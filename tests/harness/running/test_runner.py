"""What a run promises beyond the command line: the Python face, plans that round-trip, draws that depend on names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import gradleak
from gradleak.core.errors import DataError, SpecError, UnknownNameError, UsageError
from gradleak.harness.request.plan import Call, Cell, Plan
from gradleak.harness.request.shares import parse_share, share_spec

pytestmark = pytest.mark.contract

TEXTS = ["the surgery is on tuesday", "please wire the money"]


@pytest.fixture(scope="module")
def module() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    return BertForSequenceClassification(config)


def _plan(**changes: object) -> Plan:
    plain = {
        "model": "random:bert",
        "share": {"share": "gradient"},
        "threat": "honest_server",
        "attacks": (Call(type="tag"), Call(type="dlg", args={"iterations": 3})),
        "defenses": (
            (),
            (Call(type="clip", args={"max_norm": 1.0}), Call(type="gaussian", args={"noise_multiplier": 0.5})),
        ),
        "repeats": 2,
    }
    return Plan(**(plain | changes))


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


def test_plans_round_trip_and_only_what_changes_results_changes_the_fingerprint() -> None:
    plan = _plan()
    assert Plan.from_json(plan.to_json()) == plan
    assert (
        plan.model_copy(update={"command": "x", "available": {"attacks": ("tag",)}}).fingerprint() == plan.fingerprint()
    )
    changes = ({"seed": 1}, {"repeats": 3}, {"threat": "eavesdropper"}, {"max_length": 8}, {"budget_seconds": 1.0})
    assert len({plan.fingerprint(), *(_plan(**change).fingerprint() for change in changes)}) == 1 + len(changes)


@pytest.mark.parametrize("text", ["", "[]", '{"model": "x", "surprise": 1}', '{"model": 3}'])
def test_a_plan_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        Plan.from_json(text)


def test_cells_come_in_order_with_distinct_stable_names() -> None:
    cells = list(_plan().cells())
    assert len(cells) == _plan().count() == len({cell.id for cell in cells}) == 8
    assert [cell.repeat for cell in cells] == [0] * 4 + [1] * 4
    assert [cell.attack.type for cell in cells[:4]] == ["tag", "dlg", "tag", "dlg"]
    assert Cell(seed=0, repeat=0, defense=(), attack=Call(type="tag")).id == cells[0].id


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


@pytest.mark.parametrize("text", ["gradient(dtype=bf16, dropout=true)", "delta(steps=5, lr=0.001, optimizer=adamw)"])
def test_shares_round_trip(text: str) -> None:
    training = parse_share(text)
    assert parse_share(str(share_spec(training))) == training


@pytest.mark.parametrize(
    "text", ["gradient()+delta()", "gradient(share=delta)", "delta(steps=0)", "gradient(speed=1)", ""]
)
def test_a_share_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_share(text)


def test_an_unknown_share_is_named() -> None:
    with pytest.raises(UnknownNameError, match="weights"):
        parse_share("weights()")
