"""Every wrong call ends in one message with cause and remedy and exit code 2, never in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel
from typer.testing import CliRunner

from gradleak.cli.app import app

pytestmark = pytest.mark.errors

TINY = ("hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=64")
SETTINGS = [part for pair in TINY for part in ("--set", pair)]
MODEL = ["audit", "random:bert", *SETTINGS]


def _fails(*arguments: object) -> str:
    """Standard error of a call that must end with exit code 2, on one screen."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert 0 < len(result.stderr.splitlines()) <= 24
    return result.stderr


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("a private note\nanother private note\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound local model, saved as safetensors."""
    path = tmp_path_factory.mktemp("models") / "sound"
    BertForSequenceClassification(_config()).save_pretrained(path)
    return path


def _config() -> BertConfig:
    return BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def _copy(checkpoint: Path, target: Path) -> Path:
    target.mkdir()
    (target / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    return target


def test_an_unknown_attack_names_the_nearest(notes: Path) -> None:
    message = _fails(*MODEL, "--data", notes, "--attacks", "tagg")
    assert "'tagg'" in message
    assert "'tag'" in message


@pytest.mark.parametrize("option", ["--threat", "--loss", "--share", "--defenses"])
def test_an_unknown_name_lists_what_there_is(notes: Path, option: str) -> None:
    message = _fails(*MODEL, "--data", notes, option, "nonsense")
    assert "'nonsense'" in message
    assert "Known:" in message


def test_an_unknown_argument_of_an_attack_lists_its_arguments(notes: Path) -> None:
    message = _fails(*MODEL, "--data", notes, "--attacks", "tag(iteratoins=5)")
    assert "'iteratoins'" in message
    assert "iterations" in message


def test_a_missing_file(tmp_path: Path) -> None:
    message = _fails(*MODEL, "--data", tmp_path / "nowhere.txt")
    assert "nowhere.txt" in message
    assert "Check the path" in message


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    message = _fails(*MODEL, "--data", tmp_path / "empty.txt")
    assert "empty.txt" in message
    assert "at least one record" in message


def test_a_model_without_the_asked_head(notes: Path) -> None:
    message = _fails("audit", "random:vit", "--data", notes, "--loss", "causal-lm")
    assert "causal-lm" in message
    assert "classification" in message


def test_a_batch_larger_than_the_data(notes: Path) -> None:
    message = _fails(*MODEL, "--data", notes, "--batch-size", 5)
    assert "--batch-size 5" in message
    assert "--batch-size 2" in message


@pytest.mark.parametrize(
    "spec", ["gaussian(std=0.1", "gaussian(0.1)", "clip(max_norm=)", "clip(max_norm=1)+", "gaussian(std=x)", "clip()"]
)
def test_a_malformed_defense(notes: Path, spec: str) -> None:
    message = _fails(*MODEL, "--data", notes, "--defenses", spec)
    assert spec.partition("(")[0] in message


def test_a_noise_multiplier_without_a_clip(notes: Path) -> None:
    message = _fails(*MODEL, "--data", notes, "--defenses", "gaussian(noise_multiplier=1.0)")
    assert "clip(max_norm" in message


def test_a_defense_given_twice(notes: Path) -> None:
    message = _fails(*MODEL, "--data", notes, "--defenses", "sign()", "--defenses", "sign()")
    assert "sign()" in message
    assert "twice" in message


@pytest.mark.parametrize(("option", "value"), [("--budget", "soon"), ("--budget", "0s"), ("--set", "hidden_size")])
def test_an_option_that_cannot_be_read_shows_how_it_is_written(notes: Path, option: str, value: str) -> None:
    message = _fails(*MODEL, "--data", notes, option, value)
    assert value in message
    assert "Write" in message


def test_an_unknown_setting(notes: Path) -> None:
    message = _fails(*MODEL, "--data", notes, "--set", "hiden_size=32")
    assert "hiden_size" in message
    assert "hidden_size" in message


def test_an_unknown_option(notes: Path) -> None:
    assert "--datta" in _fails(*MODEL, "--datta", notes)


def test_nan_in_the_weights(checkpoint: Path, notes: Path, tmp_path: Path) -> None:
    broken = _copy(checkpoint, tmp_path / "broken")
    tensors = load_file(checkpoint / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    message = _fails("audit", broken, "--data", notes)
    assert "NaN" in message
    assert name in message


def test_a_pickled_checkpoint(checkpoint: Path, notes: Path, tmp_path: Path) -> None:
    pickled = _copy(checkpoint, tmp_path / "pickled")
    torch.save(load_file(checkpoint / "model.safetensors"), pickled / "pytorch_model.bin")
    message = _fails("audit", pickled, "--data", notes)
    assert "pickled" in message
    assert "safetensors" in message


def test_a_checkpoint_without_a_head_still_has_a_fresh_one(notes: Path, tmp_path: Path) -> None:
    """A bare encoder can be trained as a classifier; asking it for a head its type lacks cannot work."""
    BertModel(_config()).save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "config.json").write_text(
        json.dumps({**_config().to_dict(), "model_type": "vit", "architectures": ["ViTModel"]}), encoding="utf-8"
    )
    assert "masked-lm" in _fails("audit", tmp_path / "bare", "--data", notes, "--loss", "masked-lm")


@pytest.mark.parametrize("name", ["seen.pt", "seen.bin", "seen.pkl", "seen.dat"])
def test_a_pickled_observation(tmp_path: Path, name: str) -> None:
    torch.save({"classifier.weight": torch.ones(2, 32)}, tmp_path / name)
    message = _fails("attack", tmp_path / name, "--model", "random:bert", *SETTINGS)
    assert "pickled" in message
    assert "safetensors" in message


def test_a_folder_that_holds_a_pickled_update(tmp_path: Path) -> None:
    torch.save({"classifier.weight": torch.ones(2, 32)}, tmp_path / "update.pt")
    assert "pickled" in _fails("attack", tmp_path, "--model", "random:bert", *SETTINGS)


@pytest.mark.parametrize(
    ("tensors", "wanted"),
    [
        ({"nonsense.weight": torch.ones(2, 32)}, "no parameter"),
        ({"classifier.weight": torch.ones(3, 32)}, "shape (3, 32)"),
        ({"classifier.weight": torch.full((2, 32), float("nan"))}, "NaN"),
    ],
)
def test_an_update_that_does_not_fit_the_model(tmp_path: Path, tensors: dict[str, Any], wanted: str) -> None:
    save_file(tensors, tmp_path / "seen.safetensors")
    message = _fails("attack", tmp_path / "seen.safetensors", "--model", "random:bert", *SETTINGS)
    assert wanted in message
    assert next(iter(tensors)) in message


@pytest.mark.parametrize("text", ["", "{", '{"kind": "something"}', '{"kind":"gradleak.observation","unknown":1}'])
def test_a_manifest_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "observation.json").write_text(text)
    assert "observation.json" in _fails("attack", tmp_path, "--model", "random:bert", *SETTINGS)


def test_no_observation_at_all(tmp_path: Path) -> None:
    assert "no observation" in _fails("attack", tmp_path / "nowhere", "--model", "random:bert")


def test_a_report_of_something_else(tmp_path: Path) -> None:
    assert "not a run folder" in _fails("report", tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path, notes: Path) -> None:
    out = tmp_path / "run"
    done = CliRunner().invoke(
        app,
        [
            str(part)
            for part in (*MODEL, "--data", notes, "--attacks", "token_support", "--batch-size", 1, "--out", out)
        ],
    )
    assert done.exit_code == 0
    path = out / "records.jsonl"
    path.write_text("{}\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert "line 1" in _fails("report", out)
