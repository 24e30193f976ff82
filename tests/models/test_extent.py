"""The first blocks of a model are the whole model's first blocks, and what was left out is counted and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import gradleak
from gradleak.core.attack import Status
from gradleak.core.errors import ModelError, UsageError
from gradleak.core.rng import derive
from gradleak.harness.request.batches import read_batch
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 300}
TYPES = ("gpt2", "llama", "mixtral", "gemma3_text", "gpt_neox", "bert", "modernbert")


def save_sharded(model_type: str, folder: Path, loss: str) -> Subject:
    whole = load_subject(f"random:{model_type}", loss=loss, settings=SIZES)
    whole.module.save_pretrained(folder, max_shard_size="40KB")
    return whole


def files_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]


@pytest.mark.parametrize("model_type", TYPES)
def test_the_first_blocks_of_a_sharded_checkpoint_are_those_of_the_whole(model_type: str, tmp_path: Path) -> None:
    loss = "masked-lm" if "bert" in model_type else "causal-lm"
    whole = save_sharded(model_type, tmp_path, loss)
    part = load_subject(tmp_path, loss=loss, first_blocks=2)
    everything = whole.parameters()
    assert all(torch.equal(value, everything[name]) for name, value in part.parameters().items())
    assert part.extent is not None and (part.extent.blocks, part.extent.of_blocks) == (2, 4)
    assert part.extent.skipped == {n: tuple(p.shape) for n, p in everything.items() if n not in part.parameters()}
    assert part.extent.of_parameters == sum(p.numel() for p in everything.values())
    assert part.extent.parameters == sum(p.numel() for p in part.parameters().values()) < part.extent.of_parameters
    assert "first 2 of 4 blocks" in part.loaded and whole.loaded == "Loaded the whole model."
    assert part.anatomy.blocks == whole.anatomy.blocks[:2]
    paths = [m.module for block in part.anatomy.blocks for m in block.maps()]
    ids = torch.arange(3, 27).reshape(3, 8)
    seen, reference = (linear_inputs(subject, paths, ids) for subject in (part, whole))
    assert all(torch.equal(seen[path], reference[path]) for path in paths)


@pytest.mark.parametrize("model_type", ("llama", "bert"))
def test_files_of_later_blocks_need_not_be_there(model_type: str, tmp_path: Path) -> None:
    whole = save_sharded(model_type, tmp_path, "classification")
    files = files_of(tmp_path)
    skipped = load_subject(tmp_path, first_blocks=2).extent
    assert skipped is not None
    needed = {file for name, file in files.items() if name not in skipped.skipped}
    spare = set(files.values()) - needed
    assert spare, "the checkpoint must be split finely enough for this test to say anything"
    for file in spare:
        (tmp_path / file).unlink()
    part = load_subject(tmp_path, first_blocks=2)
    assert all(torch.equal(value, whole.parameters()[name]) for name, value in part.parameters().items())
    (tmp_path / sorted(needed)[0]).unlink()
    with pytest.raises(ModelError, match="lacks model"):
        load_subject(tmp_path, first_blocks=2)


def test_all_blocks_asked_for_is_the_whole_model(tmp_path: Path) -> None:
    save_sharded("gpt2", tmp_path, "causal-lm")
    assert load_subject(tmp_path, first_blocks=4).extent is None


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An update of a whole GPT-2, and the folder of its checkpoint."""
    folder = tmp_path_factory.mktemp("gpt2")
    settings = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4}
    whole = load_subject("random:gpt2", loss="causal-lm", settings=settings)
    whole.module.save_pretrained(folder / "model", max_shard_size="1MB")
    batch = read_batch(["the surgery is set", "call me at noon"], whole, max_length=8, seed=0)
    update = ClientTrainer(subject=whole, training=LocalTraining()).update(batch, derive(0))
    gradleak.capture(
        update, folder / "seen", loss="causal-lm", batch_size=2, seq_len=batch.inputs.shape[1], share="gradient",
        defenses="none",
    )  # fmt: skip
    return {"model": folder / "model", "seen": folder / "seen", "batch": batch, "names": set(update)}


def test_a_span_attack_needs_no_more_and_a_replay_says_why_it_cannot_run(captured: dict[str, Any]) -> None:
    span, tag = gradleak.attack(captured["seen"], captured["model"], attacks="span,tag", first_blocks=2)
    records = {tuple(record.tolist()) for record in span.reconstruction.records}
    truths = {tuple(record.tolist()[:-1]) for record in captured["batch"].records()}
    # The head's gradient, which gives the last tokens, needs all blocks.
    assert truths <= {record[: len(truth)] for record in records for truth in truths}
    assert span.reconstruction.status is Status.CONVERGED and span.reconstruction.certificate is None
    assert tag.reconstruction.status is Status.NOT_APPLICABLE
    assert "first 2 of 4 blocks" in tag.reconstruction.message
    assert "first 2 of 4 blocks" in span.loaded


def test_only_tensors_of_loaded_blocks_are_read(captured: dict[str, Any]) -> None:
    part = load_subject(captured["model"], loss="causal-lm", first_blocks=2)
    seen = gradleak.load_observation(captured["seen"], part).update
    assert set(seen) == set(part.parameters()) < captured["names"]


def test_wrong_requests_are_refused(captured: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="4 blocks"):
        load_subject(captured["model"], first_blocks=5)
    with pytest.raises(ModelError, match="Give 1 to 4"):
        load_subject(captured["model"], first_blocks=0)
    with pytest.raises(UsageError, match="handed over"):
        load_subject(load_subject(captured["model"]).module, first_blocks=1)
    with pytest.raises(UsageError, match="drawn on their own"):
        gradleak.attack(captured["seen"], "random:gpt2", first_blocks=2)


@pytest.mark.parametrize("content", ("{", '{"weight_map": {"a": "../elsewhere.safetensors"}}', "[]"))
def test_a_broken_index_is_refused(content: str, captured: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((captured["model"] / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "model.safetensors.index.json").write_text(content)
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"index|outside"):
        load_subject(tmp_path, first_blocks=1)
