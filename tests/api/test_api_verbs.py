"""What the verbs return in Python is what the command line prints."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gradleak
from gradleak import api
from gradleak.cli.app import app
from gradleak.core.errors import SpecError, UnknownNameError, UsageError

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def test_account_equals_the_command() -> None:
    account = api.account(noise_multiplier=1.0, steps=10, target_epsilon=1.0)
    options = "account --noise-multiplier 1 --steps 10 --target-epsilon 1 --json"
    done = CliRunner().invoke(app, options.split())
    printed = json.loads(done.stdout)
    assert printed["guarantee"]["epsilon"] == account.guarantee.epsilon
    assert printed["goals"][0]["noise_multiplier"] == account.targets[0].noise_multiplier
    assert printed["success"] == {str(length): chance for length, chance in account.success.items()}
    assert account.clip is None and account.training is None


def test_account_takes_a_plan_a_table_or_arguments() -> None:
    table = {"noise_multiplier": 1.0, "steps": 100}
    by_table, by_arguments = api.account(table), api.account(**table)
    assert asdict(by_table.guarantee) == asdict(by_arguments.guarantee) == asdict(api.account(by_table.plan).guarantee)
    assert api.account(table, steps=10).guarantee.epsilon < by_table.guarantee.epsilon
    assert math.isinf(api.account(noise_multiplier=0.0).guarantee.epsilon)
    with pytest.raises(UsageError, match="complete"):
        api.account(by_table.plan, steps=10)


def test_a_clip_norm_is_chosen_from_norms() -> None:
    choice = api.account(noise_multiplier=1.0, steps=10, norms=[0.5, 1.0, 2.0, 4.0], smoothness=2.0).clip
    assert choice is not None and choice.smoothness_given
    low, high = sorted(choice.clip_norm_range)
    assert 0 < low <= high


def test_methods_are_listed_and_explained() -> None:
    listed = api.list_methods("attacks")
    assert "span" in {method.name for method in listed} and {method.kind for method in listed} == {"attacks"}
    assert {method.kind for method in api.list_methods()} == {"attacks", "defenses", "metrics", "threats"}
    assert api.explain("span")["kind"] == "attacks"
    with pytest.raises(UnknownNameError, match="Did you mean 'span'"):
        api.explain("spam")


def test_a_run_is_rendered_checked_and_compared(tmp_path: Path) -> None:
    audit = gradleak.audit(
        "random:bert", ["a private text"], attacks="token_support", settings=TINY, out=tmp_path / "run"
    )
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nmetric = "token_recall"\nat_most = 0.5\n')
    assert api.report(audit.path).is_file()
    assert api.check(audit.path, policy).outcome.value == "fail"
    comparison = api.compare(audit.path, str(audit.path))
    assert comparison.differences and all(difference.gain == 0 for difference in comparison.differences)


def test_a_frontier_is_needed_to_recommend(tmp_path: Path) -> None:
    audit = gradleak.audit(
        "random:bert", ["a private text"], attacks="token_support", settings=TINY, out=tmp_path / "run"
    )
    with pytest.raises(UsageError, match="holds no frontier"):
        api.recommend([audit.path], leakage_below=0.5, accuracy_drop_below=0.5)


def test_theory_is_read_without_an_attack() -> None:
    foreseen = api.predict("random:gpt2", batch_size=1, seq_len=6, settings=TINY)
    assert foreseen.to_plain()["loss"] == "classification"


def test_bounds_hold_for_measured_attacks(tmp_path: Path) -> None:
    bounds = api.bound(
        "random:bert",
        settings=TINY,
        prior="token",
        candidates=4,
        noise_multipliers=(1.0,),
        measured=2,
        out=tmp_path / "bounds",
    )
    assert not bounds.violated and bounds.report().is_file()
    assert [step["rung"]["noise_multiplier"] for step in bounds.chain["steps"]] == [1.0]


@pytest.mark.errors
@pytest.mark.parametrize("levels", [(), (0.0,), ("x",), (1, 1.0), (float("inf"),)])
def test_noise_levels_out_of_range_are_refused(levels: tuple[float | str, ...]) -> None:
    with pytest.raises(UsageError):
        api.bound("random:bert", noise_multipliers=levels)


@pytest.mark.errors
def test_a_clip_norm_is_given_once() -> None:
    with pytest.raises(SpecError, match="its own clip norm"):
        api.bound("random:bert", defense="dpsgd(max_norm=1.0, noise_multiplier={knob})", max_norm=1.0)


def test_the_installation_is_examined() -> None:
    assert api.doctor()["attention"]["used_double_backward"] is True
