"""The main job through the command line, on a random model of one layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.contract

KEYS = [
    "schema_version",
    "scenario",
    "attack",
    "defenses",
    "knowledge",
    "seed",
    "repeat",
    "status",
    "scores",
    "baseline",
    "flags",
    "privacy",
    "environment",
    "seconds",
]


def test_json_is_pure_and_records_hold_the_contract(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = gradleak(*tiny, "--defenses", "clip(max_norm=1.0)+gaussian(noise_multiplier=0.5)", "--out", out, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert len(found["records"]) == 4
    for record in found["records"]:
        assert set(KEYS) <= set(record)
        assert set(record["seconds"]) == {"update", "attack", "score"}
        for entry in (record["attack"], *record["defenses"]):
            assert set(entry) == {"type", "args"}
        for score in (*record["scores"].values(), *record["baseline"].values()):
            assert set(score) == {"value", "low", "high", "chance", "n", "higher_is_better"}
    stored = [json.loads(line) for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert stored == found["records"]
    assert Path(found["report"]).is_file()


def test_token_support_recovers_an_undefended_record_exactly(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    found = json.loads(gradleak(*tiny, "--out", tmp_path / "run", "--json").stdout)
    exact = next(record for record in found["records"] if record["attack"]["type"] == "token_support")
    assert exact["scores"]["token_recall"]["value"] == 1.0
    assert exact["scores"]["exact_match"]["value"] == 1.0
    assert found["verdict"]["leak"]


def test_the_objective_at_the_truth_is_zero_without_noise(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    """An undefended gradient is matched perfectly by the truth, so an early stop is told as the search's failure."""
    found = json.loads(gradleak(*tiny, "--out", tmp_path / "run", "--json").stdout)
    matching = next(record for record in found["records"] if record["attack"]["type"] == "tag")
    assert matching["status"]["objective_at_truth"] < 1e-3 * matching["status"]["objective"]
    assert "OPTIMIZER_FAILED" in matching["flags"]


def test_evidence_is_aligned_and_has_the_text_of_every_token(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    found = json.loads(gradleak(*tiny, "--out", tmp_path / "run", "--json").stdout)
    for record in found["records"]:
        with safe_open(tmp_path / "run" / "tensors" / f"{record['cell']}.safetensors", framework="pt") as file:
            metadata = file.metadata()
            keys = list(file.keys())
            assert "truth.0" in keys
            for key in keys:
                if key.startswith("confidence."):
                    guess = file.get_tensor(key.replace("confidence", "guess"))
                    assert file.get_tensor(key).shape == guess.shape
                    continue
                assert len(json.loads(metadata[f"pieces.{key}"])) == file.get_tensor(key).numel()
            places = [i for i, same in enumerate(file.get_tensor("truth.0").tolist()) if same >= 0]
            if "token_accuracy" in record["scores"]:
                truth, guess = file.get_tensor("truth.0").tolist(), file.get_tensor("guess.0").tolist()
                hits = sum(a == b for a, b in zip(truth, guess, strict=False))
                assert hits / len(places) == pytest.approx(record["scores"]["token_accuracy"]["value"])


def test_several_values_of_one_option_may_stand_in_a_row(
    gradleak: Callable[..., Any], notes: Path, tmp_path: Path
) -> None:
    result = gradleak(
        *("audit", "--set", "hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=64"),
        *("--defenses", "sign()", "prune(fraction=0.9)", "--attacks", "token_support", "random:bert"),
        *("--data", notes, "--out", tmp_path / "run", "--json"),
    )
    assert result.exit_code == 0
    names = [[stage["type"] for stage in record["defenses"]] for record in json.loads(result.stdout)["records"]]
    assert names == [[], ["sign"], ["prune"]]


@pytest.mark.parametrize("share", ["gradient(dtype=bf16, dropout=true)", "delta(steps=2, lr=0.01, optimizer=sgd)"])
def test_every_way_of_sharing_is_audited(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path, share: str
) -> None:
    result = gradleak(*tiny, "--share", share, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)["records"][0]
    assert record["scenario"]["share"]["type"] == share.partition("(")[0]


def test_nothing_conclusive_is_exit_code_3(gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path) -> None:
    result = gradleak(*tiny, "--attacks", "tag(iterations=2)", "--threat", "eavesdropper", "--out", tmp_path / "run")
    assert result.exit_code == 3
    assert "nconclusive" in result.stdout


def test_the_budget_is_shared_evenly_and_stops_a_search(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    arguments = ("--attacks", "tag(iterations=100000)", "--budget", "1s", "--repeats", 2, "--out", tmp_path / "run")
    result = gradleak(*tiny, *arguments, "--json")
    statuses = [record["status"]["name"] for record in json.loads(result.stdout)["records"]]
    assert statuses == ["BUDGET_SPENT"] * 2


def test_the_table_goes_to_stdout_and_progress_to_stderr(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    result = gradleak(*tiny, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "token_recall" in result.stdout
    assert "[2/2]" in result.stderr
    assert "[2/2]" not in result.stdout


def test_private_text_is_shown_only_when_asked(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path, notes: Path
) -> None:
    hidden = gradleak(*tiny, "--out", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    rare = {"swordfish", "surgery", "surgeon", "quietly", "portal", "tuesday", "cafe", "wire", "doctor", "blood"}
    assert not [word for word in rare if word in page or word in hidden.stdout]
    shown = gradleak("report", tmp_path / "run", "--reveal")
    assert shown.exit_code == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert any(word in page for word in " ".join(notes.read_text().split()).split() if len(word) > 3)


def test_the_plan_tells_the_command_that_repeats_it(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    import shlex

    first = json.loads(gradleak(*tiny, "--defenses", "sign()", "--out", tmp_path / "a", "--json").stdout)["records"]
    command = json.loads((tmp_path / "a" / "plan.json").read_text(encoding="utf-8"))["command"]
    again = gradleak(*shlex.split(command)[1:], "--out", tmp_path / "b", "--json")
    assert [_lasting(record) for record in json.loads(again.stdout)["records"]] == [
        _lasting(record) for record in first
    ]


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in {"seconds", "environment"}}


def test_an_audit_of_the_first_blocks_says_so_in_plan_record_and_output(
    gradleak: Callable[..., Any], notes: Path, tmp_path: Path
) -> None:
    sizes = ("hidden_size=32", "num_hidden_layers=3", "num_attention_heads=2")
    settings = [part for pair in sizes for part in ("--set", pair)]
    result = gradleak(
        "audit", "random:gpt2", *settings, "--first-blocks", 1, "--data", notes, "--attacks", "token_support",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0
    assert "first 1 of 3 blocks" in result.stderr
    plan = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
    assert plan["first_blocks"] == 1
    assert "--first-blocks 1" in plan["command"]
    record = json.loads((tmp_path / "run" / "records.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert "first 1 of 3 blocks" in record["environment"]["loaded"]
