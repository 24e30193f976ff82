"""``gradleak account``: numbers, tables, lint, exit codes, and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.contract

SAMPLED = ("account", "--noise-multiplier", 1, "--sampling-rate", 0.01, "--steps", 1000)


def test_prints_epsilon_and_all_it_rests_on(gradleak: Callable[..., Any]) -> None:
    done = gradleak(*SAMPLED)
    assert done.exit_code == 0
    assert "ε = 1.828 at δ = 1e-05" in done.stdout
    for word in ("mechanism", "sensitivity", "sampling", "composition", "relation", "view", "unit", "Rényi"):
        assert word in done.stdout
    for number in ("2.844", "23.39", "67.89"):
        assert number in done.stdout


def test_json_has_the_same_and_no_infinity(gradleak: Callable[..., Any]) -> None:
    found = json.loads(gradleak(*SAMPLED, "--json", "--target-success", 0.5, "--candidates", 2000).stdout)
    assert found["guarantee"]["epsilon"] == pytest.approx(1.828, abs=1e-3)
    assert found["goals"][0]["noise_multiplier"] < 1
    nothing = json.loads(gradleak("account", "--noise-multiplier", 1, "--clip", "none", "--json").stdout)
    assert nothing["guarantee"]["epsilon"] is None and "clipped" in nothing["guarantee"]["reason"]
    assert nothing["success"]["512"] == 1.0


def test_no_guarantee_is_said_in_the_same_place(gradleak: Callable[..., Any]) -> None:
    done = gradleak("account", "--noise-multiplier", 1, "--clip", "data")
    assert done.stdout.startswith("no guarantee: the clipping bound follows the private data")
    assert done.exit_code == 1 and "data-dependent-clip" in done.stdout


def test_shuffled_batches_print_the_lower_bound_beside_the_poisson_claim(gradleak: Callable[..., Any]) -> None:
    done = gradleak(
        *("account", "--noise-multiplier", 0.8, "--sampling", "shuffle", "--sampling-rate", 1e-4, "--steps", 10_000),
        *("--set", "claimed.sampling=poisson", "--set", "claimed.epsilon=0.06"),
    )
    assert done.exit_code == 1
    for text in ("certainly not below", "3.836", "0.062", "5.68", "shuffled-as-poisson", "claim-too-low"):
        assert text in done.stdout


def test_a_plan_file_and_options_over_it(gradleak: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(
        "noise_multipliers = [2.0, 1.0]\nsteps = [10, 10]\n[claimed]\nepsilon = 30.0\nsteps = 20\n", encoding="utf-8"
    )
    scheduled = json.loads(gradleak("account", file, "--json").stdout)
    assert scheduled["plan"]["steps"] == 20 and scheduled["lint"] == []
    replaced = json.loads(gradleak("account", file, "--noise-multiplier", 4, "--steps", 20, "--json").stdout)
    assert replaced["guarantee"]["epsilon"] < scheduled["guarantee"]["epsilon"]
    file.write_text("noise_multiplier = 1.0\nsampling_ratio = 0.1\n", encoding="utf-8")
    wrong = gradleak("account", file)
    assert wrong.exit_code == 2 and "Did you mean 'sampling_rate'" in wrong.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--noise-multiplier", 1, "--delta", 1), "delta=1.0"),
        (("--noise-multiplier", -1), "at least 0"),
        (("--noise-multiplier", 1, "--sampling-rate", 2), "at most 1"),
        (("--noise-multiplier", 1, "--relation", "replace"), "Did you mean 'replace_one'"),
        (("--noise-multiplier", 1, "--view", "final_modle"), "Did you mean 'final_model'"),
        (("--noise-multiplier", 1, "--set", "clients"), "key=value"),
        (("--noise-multiplier", 1, "--target-success", 0.001), "guessing alone"),
        ((), "noise_multiplier"),
        (("--noise-multiplier", 1, "--clip", "tensor"), "clip tensor needs tensors"),
        (
            ("--noise-multiplier", 1, "--set", "mechanism=tree", "--view", "server_sees_each_update"),
            "The nearest valid combination is “a tree over the steps”",
        ),
    ],
)
def test_wrong_use_exits_with_2(gradleak: Callable[..., Any], options: tuple[object, ...], says: str) -> None:
    done = gradleak("account", *options)
    assert done.exit_code == 2 and says in done.stderr and done.stdout == ""


def test_goals_on_one_axis(gradleak: Callable[..., Any]) -> None:
    found = json.loads(gradleak("account", "--noise-multiplier", 1, "--goals", "--json").stdout)["goals"]
    multipliers = [row["noise_multiplier"] for row in found]
    assert multipliers == sorted(multipliers) and len(found) == 8
    by_goal = {row["goal"]: row for row in found}
    assert by_goal["ε ≤ 1"]["relative_variance"] == pytest.approx(38.6, abs=0.1)
    assert by_goal["at most 1 % chance to find it in a list of 512"]["noise_multiplier"] == pytest.approx(
        1.788, abs=1e-3
    )
    assert "span attacks dead" in found[0]["goal"]


def test_a_clip_norm_is_suggested(gradleak: Callable[..., Any], tmp_path: Path) -> None:
    norms = tmp_path / "norms.txt"
    norms.write_text("\n".join(str(1 + 0.01 * i) for i in range(100)), encoding="utf-8")
    found = json.loads(
        gradleak(*SAMPLED, "--norms", norms, "--target-success", 0.01, "--parameters", 1000, "--json").stdout
    )
    assert 0 < found["clip"]["clip_norm"] <= 2
    assert found["clip"]["noise_multiplier"] == found["goals"][0]["noise_multiplier"]
    shown = gradleak(*SAMPLED, "--norms", norms).stdout
    assert "Clip norm for noise multiplier 1:" in shown and "give --smoothness" in shown
    low, high = sorted(found["clip"]["clip_norm_range"])
    assert low <= found["clip"]["clip_norm"] <= high and low < high
    at = ("--smoothness", 100, "--first-loss", 1, "--target-success", 0.01, "--parameters", 1000, "--json")
    rougher = json.loads(gradleak(*SAMPLED, "--norms", norms, *at).stdout)["clip"]
    assert rougher["smoothness_given"] and rougher["clip_norm"] == found["clip"]["clip_norm_range"][1]


def test_takes_less_than_three_times_what_its_libraries_take_to_load_and_no_torch() -> None:
    """Processor seconds on one thread, both measured here: threads that spin and a slow machine are not the command's."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def measured(code: str) -> tuple[float, subprocess.CompletedProcess[str]]:
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=alone)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system, done

    seconds, done = measured(
        "import sys; from gradleak.cli.app import app\n"
        "try: app(['account', '--noise-multiplier', '1', '--sampling-rate', '0.01', '--steps', '1000'])\n"
        "except SystemExit: print('TORCH', 'torch' in sys.modules, file=sys.stderr)"
    )
    libraries, _ = measured("import dp_accounting, scipy.stats, typer, rich, pydantic")
    assert "TORCH False" in done.stderr and "1.828" in done.stdout
    assert seconds < 3.0 * libraries


def test_guesses_about_canaries_refute_a_plan_that_claims_less(gradleak: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"correct": 100, "guesses": 100, "canaries": 1000}), encoding="utf-8")
    refuted = gradleak("account", "--noise-multiplier", 10, "--audit", file)
    assert refuted.exit_code == 1 and "the claim is refuted" in refuted.stdout
    passed = gradleak("account", "--noise-multiplier", 0.2, "--audit", file, "--json")
    assert passed.exit_code == 0 and json.loads(passed.stdout)["audit"]["refuted"] is False


def test_a_saved_accountant_is_read(gradleak: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "accountant.json"
    file.write_text(json.dumps({"history": [[1.0, 0.01, 1000]], "mechanism": "rdp"}), encoding="utf-8")
    assert "ε = 1.828" in gradleak("account", "--from", file).stdout
