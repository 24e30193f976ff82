"""``gradleak bound``: three priors on a tiny model, the numbers it stores, what it shows, and how it stops."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradleak.core.update import Update
from gradleak.defenses.gaussian import Gaussian
from gradleak.harness.bounds.store import read_bounds

pytestmark = pytest.mark.contract

TINY = ("hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=64", "n_positions=32")


@pytest.fixture
def bound(notes: Path) -> list[object]:
    """``bound`` of a random one-layer decoder on six notes."""
    settings = [part for pair in TINY[:3] for part in ("--set", pair)]
    levels = "0.1,0.5,2"
    return ["bound", "random:gpt2", "--data", notes, "--loss", "causal-lm", "--noise-multipliers", levels, *settings]


@pytest.mark.parametrize(
    ("prior", "extra", "count"),
    [
        ("sentences", [], 6),
        ("token", ["--candidates", 9], 9),
        ("attribute", ["--values", "doctor,lawyer,banker"], 3),
    ],
)
def test_the_chain_is_in_order_for_every_prior(
    gradleak: Callable[..., Any], bound: list[object], tmp_path: Path, prior: str, extra: list[object], count: int
) -> None:
    out = tmp_path / "run"
    result = gradleak(*bound, "--prior", prior, *extra, "--measured", 20, "--out", out, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert (found["prior"]["name"], found["prior"]["listed"]) == (prior, count)
    assert found["prior"]["kappa"] == pytest.approx(1 / found["prior"]["distinct"])
    assert read_bounds(out) == ({key: value for key, value in found.items() if key not in {"run", "report"}},)
    assert len(found["steps"]) == 3
    for step in found["steps"]:
        rung, measured = step["rung"], step["measured"][0]["rate"]
        best = rung["best"]["success"]
        assert measured["low"] <= best["high"] and best["low"] <= rung["instance"] <= rung["mechanism"]
        assert rung["mechanism"] <= rung["approximate"] + 1e-12
        assert 0 <= rung["best"]["bits"] <= found["prior"]["bits"] + 4 * rung["best"]["bits_error"]
        assert measured["high"] >= best["low"], "the nearest candidate is the optimal attack for a uniform prior"
        assert step["conformance"]["verdict"] == "consistent"


def test_tables_and_page_hold_no_private_word(
    gradleak: Callable[..., Any], bound: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = gradleak(*bound, "--measured", 0, "--out", out)
    assert "best possible" in result.stdout and "e^ε κ + δ" in result.stdout
    page = (out / "bounds.html").read_text(encoding="utf-8")
    assert "What anyone could recover" in page and "<polygon" in page
    for word in ("swordfish", "surgery", "doctor"):
        assert word not in page + result.stdout + "".join(
            p.read_text(encoding="utf-8") for p in out.glob("bounds-*.json*")
        )


def test_bounds_join_the_report_of_an_audit(
    gradleak: Callable[..., Any], tiny: list[object], bound: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    gradleak(*tiny, "--out", out)
    assert "What anyone could recover" not in (out / "report.html").read_text(encoding="utf-8")
    gradleak(*bound, "--measured", 0, "--out", out)
    assert "What anyone could recover" in (out / "report.html").read_text(encoding="utf-8")
    assert not (out / "bounds.html").exists()
    assert gradleak(*tiny, "--out", out).exit_code == 0, "the audit still resumes"


def test_the_same_command_gives_the_same_numbers(
    gradleak: Callable[..., Any], bound: list[object], tmp_path: Path
) -> None:
    found = [
        json.loads(gradleak(*bound, "--measured", 3, "--out", tmp_path / name, "--json").stdout) for name in ("a", "b")
    ]
    assert found[0]["steps"] == found[1]["steps"]


def test_noise_that_is_not_added_is_a_violation(
    gradleak: Callable[..., Any], bound: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(self: Gaussian, update: Update, rng: torch.Generator) -> Update:
        return update

    monkeypatch.setattr(Gaussian, "apply", forget)
    result = gradleak(*bound, "--out", tmp_path / "run", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    last = found["steps"][-1]
    assert last["rung"]["noise_multiplier"] < 2, "the run stops at the first broken level"
    assert last["violated"] and last["conformance"]["verdict"] == "violation"
    text = next(each for each in last["findings"] if each.startswith("VIOLATION"))
    places = [text.index(word) for word in ("prior:", "view:", "noise:", "bound code:")]
    assert places == sorted(places)
    assert "VIOLATION" in (tmp_path / "run" / "bounds.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior", "sentence"], "Did you mean 'sentences'"),
        (["--noise-multipliers", "0.1,x"], "separated by commas"),
        (["--noise-multipliers", "0"], "must be positive"),
        (["--noise-multipliers", "-1"], "must be positive"),
        (["--max-norm", "0"], "positive and finite"),
        (["--delta", "1"], "between 0 and 1"),
        (["--releases", "0"], "at least 1"),
        (["--measured", "-1"], "at least 0"),
        (["--candidates", "1"], "from 2 to"),
        (["--candidates", "7"], "holds 6 different records"),
        (["--prior", "attribute"], "--values"),
        (["--prior", "attribute", "--values", "zebra,okapi"], "No record"),
        (["--prior", "attribute", "--values", "doctor"], "two different words"),
        (["--values", "a,b"], "belongs to --prior attribute"),
        (["--data", "missing.txt"], "no file"),
    ],
)
def test_bad_input_is_named(
    gradleak: Callable[..., Any], bound: list[object], arguments: list[str], message: str
) -> None:
    result = gradleak(*bound, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_equal_candidates_are_an_error(gradleak: Callable[..., Any], bound: list[object], tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text("the same beginning of a note a\nthe same beginning of a note b\n", encoding="utf-8")
    result = gradleak(*bound, "--data", path, "--max-length", 4)
    assert result.exit_code == 2
    assert "same gradient" in result.stderr


def test_the_label_is_an_attribute(gradleak: Callable[..., Any], tmp_path: Path) -> None:
    settings = [part for pair in TINY[:4] for part in ("--set", pair)]
    arguments = ["bound", "random:bert", *settings, "--prior", "attribute", "--out", tmp_path / "run", "--json"]
    found = json.loads(gradleak(*arguments, "--measured", 0).stdout)
    assert found["prior"]["description"].startswith("the label of one record")
    assert found["prior"]["listed"] >= 2
