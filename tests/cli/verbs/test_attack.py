"""A captured update is attacked without its truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import gradleak as package
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.contract

SETTINGS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SECRET = "the surgery is scheduled for tuesday"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without ``--out`` write to ``runs`` in the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject("random:bert", settings=SETTINGS)


@pytest.fixture(scope="module")
def update(subject: Subject) -> Update:
    from gradleak.harness.request.batches import read_batch

    batch = read_batch([SECRET], subject, max_length=32, seed=0)
    return ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "training"))


@pytest.fixture
def model() -> list[object]:
    return [
        "--model",
        "random:bert",
        *(part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")),
    ]


def test_a_capture_with_its_facts_is_recovered_and_redacted(
    gradleak: Callable[..., Any], update: Update, model: list[object], tmp_path: Path
) -> None:
    package.capture(
        update, tmp_path / "seen", loss="classification", batch_size=1, seq_len=9, share="gradient", defenses="none"
    )
    arguments = ("attack", tmp_path / "seen", *model, "--attacks", "token_support,tag(iterations=3)")
    hidden = gradleak(*arguments)
    assert hidden.exit_code == 0
    assert "surgery" not in hidden.stdout
    shown = gradleak(*arguments, "--reveal")
    assert SECRET in shown.stdout
    found = json.loads(gradleak(*arguments, "--json").stdout)["findings"]
    assert [finding["attack"]["type"] for finding in found] == ["token_support", "tag"]
    assert "surgery" not in json.dumps(found)


def test_a_bare_file_tells_attacks_nothing_and_they_say_so(
    gradleak: Callable[..., Any], update: Update, model: list[object], tmp_path: Path
) -> None:
    save_file(dict(update), tmp_path / "seen.safetensors")
    result = gradleak("attack", tmp_path / "seen.safetensors", *model, "--attacks", "token_support,tag", "--json")
    support, tag = json.loads(result.stdout)["findings"]
    assert support["status"] == "CONVERGED"
    assert tag["status"] == "NOT_APPLICABLE"
    assert "trainer" in tag["message"]


def test_no_proposal_at_all_is_exit_code_3(
    gradleak: Callable[..., Any], update: Update, model: list[object], tmp_path: Path
) -> None:
    save_file(dict(update), tmp_path / "seen.safetensors")
    assert gradleak("attack", tmp_path / "seen.safetensors", *model, "--attacks", "tag").exit_code == 3


def test_findings_are_stored(gradleak: Callable[..., Any], update: Update, model: list[object], tmp_path: Path) -> None:
    save_file(dict(update), tmp_path / "seen.safetensors")
    arguments = (
        "attack",
        tmp_path / "seen.safetensors",
        *model,
        "--attacks",
        "token_support",
        "--out",
        tmp_path / "out",
    )
    assert gradleak(*arguments).exit_code == 0
    assert json.loads((tmp_path / "out" / "findings.json").read_text(encoding="utf-8"))[0]["status"] == "CONVERGED"
    assert (tmp_path / "out" / "0-token_support.safetensors").is_file()


def test_an_observation_survives_the_way_through_a_folder(subject: Subject, update: Update, tmp_path: Path) -> None:
    package.capture(
        update,
        tmp_path / "seen",
        loss="classification",
        batch_size=1,
        seq_len=9,
        share="delta(steps=3, lr=0.01)",
        defenses="clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)",
        mask=torch.ones(1, 9, dtype=torch.bool),
        labels=torch.tensor([1]),
    )
    first = package.load_observation(tmp_path / "seen", subject)
    package.save_observation(first, tmp_path / "again")
    second = package.load_observation(tmp_path / "again", subject)
    for key in ("batch_size", "seq_len", "stages", "trainer", "subject"):
        assert first.knowledge.facts[key] == second.knowledge.facts[key]
    for key in ("mask", "labels"):
        assert torch.equal(first.knowledge.facts[key], second.knowledge.facts[key])
    assert all(torch.equal(update[name], second.update[name]) for name in update)
    assert set(update) == set(second.update)


def test_the_first_blocks_are_enough_for_span_and_the_output_says_what_was_loaded(
    gradleak: Callable[..., Any], tmp_path: Path
) -> None:
    from gradleak.harness.request.batches import read_batch

    whole = load_subject("random:gpt2", settings={**SETTINGS, "num_hidden_layers": 3})
    whole.module.save_pretrained(tmp_path / "model")
    batch = read_batch([SECRET], whole, max_length=12, seed=0)
    update = ClientTrainer(subject=whole, training=LocalTraining()).update(batch, derive(0, "training"))
    package.capture(update, tmp_path / "seen", loss="classification", batch_size=1, seq_len=9, share="gradient")
    arguments = ("attack", tmp_path / "seen", "--model", tmp_path / "model", "--first-blocks", 1, "--attacks", "tag")
    shown = gradleak(*arguments)
    assert "first 1 of 3 blocks" in shown.stdout
    assert shown.exit_code == 3
    (found,) = json.loads(gradleak(*arguments, "--json").stdout)["findings"]
    assert found["status"] == "NOT_APPLICABLE"
    assert "--first-blocks" in found["message"]
    assert "first 1 of 3 blocks" in found["loaded"]


@pytest.mark.contract
def test_the_run_folder_holds_a_report_that_can_be_made_again(
    gradleak: Callable[..., Any], update: Update, model: list[object], tmp_path: Path
) -> None:
    save_file(dict(update), tmp_path / "seen.safetensors")
    out = tmp_path / "out"
    arguments = ("attack", tmp_path / "seen.safetensors", *model, "--attacks", "token_support,span", "--out", out)
    plain = json.loads(gradleak(*arguments, "--json", "--reveal").stdout)
    assert plain["verdict"]["leak"]
    assert plain["inspection"]["kind"] == "gradient"
    assert {"attack", "status", "records"} <= set(plain["findings"][0])
    hidden = (out / "report.html").read_text(encoding="utf-8")
    assert plain["verdict"]["headline"].partition(" (")[0] in hidden
    assert "surgery" in hidden  # --reveal was given
    again = gradleak("report", out)
    assert again.exit_code == 0
    assert plain["verdict"]["headline"] in again.stdout
    assert "surgery" not in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.contract
def test_where_no_attack_applies_the_headline_says_so(
    gradleak: Callable[..., Any], update: Update, model: list[object], tmp_path: Path
) -> None:
    save_file(dict(update), tmp_path / "seen.safetensors")
    result = gradleak(
        "attack", tmp_path / "seen.safetensors", *model, "--attacks", "tag", "--json", "--out", tmp_path / "out"
    )
    assert result.exit_code == 3
    assert "No attack here can read this kind of update" in json.loads(result.stdout)["verdict"]["headline"]


@pytest.mark.contract
def test_whole_weights_are_refused_without_a_reference_and_read_with_one(
    gradleak: Callable[..., Any], subject: Subject, update: Update, model: list[object], tmp_path: Path
) -> None:
    before = {name: value.detach().clone() for name, value in subject.module.named_parameters()}
    after = {name: value - 0.1 * update[name] for name, value in before.items()}
    save_file(before, tmp_path / "before.safetensors")
    save_file({f"module.{name}": value for name, value in after.items()}, tmp_path / "after.safetensors")
    arguments = (
        "attack",
        tmp_path / "after.safetensors",
        *model,
        "--attacks",
        "token_support",
        "--out",
        tmp_path / "out",
    )
    refused = gradleak(*arguments)
    assert refused.exit_code == 2
    assert "--reference" in refused.stderr
    read = gradleak(*arguments, "--reference", tmp_path / "before.safetensors", "--json", "--reveal")
    assert read.exit_code == 0
    plain = json.loads(read.stdout)
    assert (plain["inspection"]["kind"], plain["inspection"]["subtracted"]) == ("delta", True)
    assert "surgery" in plain["findings"][0]["records"][0]


@pytest.mark.contract
def test_progress_goes_to_a_pipe(
    gradleak: Callable[..., Any], update: Update, model: list[object], tmp_path: Path
) -> None:
    save_file(dict(update), tmp_path / "seen.safetensors")
    result = gradleak(
        "attack", tmp_path / "seen.safetensors", *model, "--attacks", "token_support", "--out", tmp_path / "out"
    )
    assert "[1/1] token_support: CONVERGED" in result.stderr


@pytest.mark.contract
def test_decay_of_sgd_is_taken_off(
    gradleak: Callable[..., Any], subject: Subject, update: Update, model: list[object], tmp_path: Path
) -> None:
    weights = {name: value.detach() for name, value in subject.module.named_parameters()}
    change = {name: -0.1 * (update[name] + 0.01 * value) for name, value in weights.items()}
    save_file(change, tmp_path / "seen.safetensors")
    arguments = (
        "attack",
        tmp_path / "seen.safetensors",
        *model,
        "--attacks",
        "token_support",
        "--out",
        tmp_path / "out",
    )
    plain = json.loads(gradleak(*arguments, "--json", "--reveal").stdout)
    assert "surgery" in plain["findings"][0]["records"][0]
    assert any("Weight decay of -0.001" in remark for remark in plain["inspection"]["remarks"])
