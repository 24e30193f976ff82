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


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject("random:bert", settings=SETTINGS)


@pytest.fixture(scope="module")
def update(subject: Subject) -> Update:
    from gradleak.api import read_batch

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
    from gradleak.api import read_batch

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
