"""``gradleak bound`` of a mechanism with a knob, with an audit's own attacks, resumed, and joined to an audit with accuracy."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradleak.harness.bounds import chain as audit_bound
from gradleak.harness.bounds.release import ReleaseLaw
from gradleak.harness.bounds.store import read_bounds

pytestmark = pytest.mark.contract

SETTINGS = ("hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=64")
DPSGD = "dpsgd(max_norm=1.0, noise_multiplier={knob})"


@pytest.fixture
def bound(notes: Path) -> list[object]:
    settings = [part for pair in SETTINGS for part in ("--set", pair)]
    return ["bound", "random:bert", "--data", notes, "--noise-multipliers", "1e-6,0.5", "--measured", 8, *settings]


def lines(folder: Path) -> list[str]:
    return (folder / "bounds-sentences.jsonl").read_text(encoding="utf-8").splitlines()


def test_dpsgd_is_released_by_its_own_code_and_attacked_by_the_catalogue(
    gradleak: Callable[..., Any], bound: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ("--defense", DPSGD, "--attacks", "identification,span,adapter_bag", "--out", out, "--json")
    decoder = ["random:gpt2" if part == "random:bert" else part for part in bound[:-2]]
    result = gradleak(*decoder, "--loss", "causal-lm", *arguments)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    weak, strong = found["steps"]
    names = [each["attack"] for each in weak["measured"]]
    assert names[0] == "nearest candidate" and [name.split("(")[0] for name in names[1:3]] == ["identification", "span"]
    rates = [each["rate"] for each in weak["measured"][:3]]
    assert [rate["hits"] for rate in rates] == [8, 8, 8], "next to no noise hides nothing from any of them"
    assert weak["measured"][3]["rate"] is None and "seq_len" in weak["measured"][3]["reason"], (
        "lengths differ, so none is told"
    )
    assert strong["rung"]["instance"] <= strong["rung"]["mechanism"] <= strong["rung"]["approximate"]
    assert strong["measured"][0]["rate"]["low"] <= strong["rung"]["best"]["success"]["high"]
    claim = strong["claim"]
    assert claim["epsilon"] == pytest.approx(strong["rung"]["epsilon"], rel=1e-9), "claim and chain account alike"
    page = html.unescape((out / "bounds.html").read_text(encoding="utf-8"))
    assert all(str(claim[key]) in page for key in ("sensitivity", "sampling", "relation", "unit"))
    assert "Gaussian noise" in page
    assert "swordfish" not in page


def test_secret_coins_lower_every_slice(gradleak: Callable[..., Any], bound: list[object], tmp_path: Path) -> None:
    found = {}
    for rate in (1.0, 0.5):
        defense = f"dpsgd(max_norm=1.0, noise_multiplier={{knob}}, sampling_rate={rate})"
        out = tmp_path / str(rate)
        found[rate] = json.loads(
            gradleak(*bound, "--defense", defense, "--measured", 40, "--out", out, "--json").stdout
        )
    for plain, coins in zip(found[1.0]["steps"], found[0.5]["steps"], strict=True):
        assert coins["claim"]["sampling"] != plain["claim"]["sampling"]
        for key in ("instance", "mechanism"):
            assert coins["rung"][key] < plain["rung"][key]
        # A release that holds the record half of the time: half of the games are guesses among six.
        best, hits = coins["rung"]["best"]["success"], coins["measured"][0]["rate"]
        assert hits["low"] <= best["high"] and best["low"] <= hits["high"]
    weak = found[0.5]["steps"][0]["rung"]
    assert weak["mechanism"] == pytest.approx(0.5 + 0.5 / 6, abs=1e-6)


def test_an_interrupted_chain_goes_on_where_it_stopped(
    gradleak: Callable[..., Any], bound: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gradleak(*bound, "--out", tmp_path / "whole").exit_code == 0
    ran: list[float] = []
    step = audit_bound._step  # pyright: ignore[reportPrivateUsage]

    def stopping(*arguments: Any) -> Any:
        law: ReleaseLaw = arguments[4]
        ran.append(law.noise_multiplier)
        if ran == [1e-6, 0.5]:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(audit_bound, "_step", stopping)
    out = tmp_path / "cut"
    result = gradleak(*bound, "--out", out)
    assert result.exit_code == 130 and f"--out {out}" in result.stderr.replace("\n", "")
    assert len(lines(out)) == 2, "the candidates, and the level that was whole"
    with (out / "bounds-sentences.jsonl").open("a") as file:
        file.write('{"step":{"ru')
    assert gradleak(*bound, "--out", out).exit_code == 0
    assert ran == [1e-6, 0.5, 0.5], "no level is computed twice"
    assert lines(out) == lines(tmp_path / "whole")
    page = (out / "bounds.html").read_text(encoding="utf-8")
    assert gradleak(*bound, "--out", out).exit_code == 0 and ran == [1e-6, 0.5, 0.5]
    assert (out / "bounds.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--noise-multipliers", "1e-6,0.6"], "settings.noise_multipliers"),
        (["--measured", 9], "settings.measured: 8 → 9"),
        (["--defense", DPSGD], "settings.defense"),
        (["--candidates", 5], "prior.fingerprint"),
        (["--seed", 3], "weights"),
        (["--attacks", "span"], "settings.attacks"),
    ],
)
def test_a_changed_plan_is_refused(
    gradleak: Callable[..., Any], bound: list[object], tmp_path: Path, arguments: list[object], changed: str
) -> None:
    out = tmp_path / "run"
    gradleak(*bound, "--measured", 8, "--out", out)
    before = lines(out)
    result = gradleak(*bound, *arguments, "--out", out)
    assert result.exit_code == 2 and changed in result.stderr.replace("\n", " ")
    assert lines(out) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--defense", "dpsgd(max_norm=1.0, noise_multiplier=1)"], "has no {knob}"),
        (["--defense", "gaussian(relative_std={knob})"], "no chain of bounds"),
        (["--defense", "dpsgd(max_norm={knob}, noise_multiplier=1)"], "does not sweep that alone"),
        (["--defense", DPSGD, "--max-norm", 2], "Leave --max-norm out"),
        (["--attacks", "spam"], "Did you mean"),
        (["--noise-multipliers", "1,1.0"], "twice"),
    ],
)
def test_bad_mechanisms_are_named(
    gradleak: Callable[..., Any], bound: list[object], arguments: list[object], message: str
) -> None:
    result = gradleak(*bound, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_one_report_holds_claim_attack_bounds_and_accuracy(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [
        *(part if part != "token_support,tag(iterations=3)" else "span" for part in tiny),
        *("--frontier", DPSGD, "--knobs", "0.0001,2", "--utility-rounds", 3, "--utility-seeds", 2),
        *("--bound", "sentences", "--measured", 6, "--out", out),
    ]
    result = gradleak(*command, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [step["defense"] for step in found["bounds"]["steps"]] == [
        p["defense"] for p in found["frontier"]["points"][1:]
    ]
    page = (out / "report.html").read_text(encoding="utf-8")
    section = page.split('id="bounds"')[1]
    assert '<th class="num">accuracy</th>' in section and 'polyline class="accuracy"' in section
    for point in found["frontier"]["points"][1:]:
        assert f"{point['accuracy']['value']:.3f}" in section
    assert "span" in section and "What ε rests on" in section and "swordfish" not in page
    assert "--bound sentences --measured 6" in page, "the page says how to run it again"
    before = (lines(out), page)
    assert gradleak(*command, "--json").exit_code == 0
    assert (lines(out), (out / "report.html").read_text(encoding="utf-8")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bound", "sentences"], "--frontier"),
        (["--candidates", 4], "belongs to --bound"),
        (["--bound", "sentence"], "Did you mean"),
        (
            ["--bound", "sentences", "--frontier", DPSGD, "--knobs", "1", "--share", "lora(rank=2)"],
            "one shared gradient",
        ),
        (["--bound", "sentences", "--frontier", "gaussian(relative_std={knob})", "--knobs", "1"], "no chain of bounds"),
    ],
)
def test_bad_audits_with_bounds(
    gradleak: Callable[..., Any], tiny: list[object], arguments: list[object], message: str
) -> None:
    result = gradleak(*tiny, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_a_chain_of_an_older_version_is_not_read(
    tmp_path: Path, gradleak: Callable[..., Any], bound: list[object]
) -> None:
    (tmp_path / "bounds-sentences.json").write_text('{"schema_version": 1, "steps": []}', encoding="utf-8")
    result = gradleak(*bound, "--out", tmp_path)
    assert result.exit_code == 2 and "schema version 1" in result.stderr.replace("\n", " ")
    assert read_bounds(tmp_path / "nothing") == ()


def test_pictures_are_listed_and_have_an_error_floor(gradleak: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for place in range(5):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{place}.png")
    settings = [part for pair in (*SETTINGS, "image_size=8", "patch_size=4") for part in ("--set", pair)]
    command = ["bound", "random:vit", "--data", folder, "--noise-multipliers", "0.001,3", *settings]
    arguments = ("--attacks", "identification", "--measured", 6, "--out", tmp_path / "run", "--json")
    result = gradleak(*command, "--prior", "images", *arguments)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["prior"]["listed"] == 5
    weak, strong = found["steps"]
    assert [each["rate"]["hits"] for each in weak["measured"]] == [6, 6]
    assert strong["rung"]["best"]["success"]["low"] < weak["rung"]["best"]["success"]["low"]
    assert 0 < weak["floor"]["share"] < strong["floor"]["share"] <= 1.001
    assert "error floor" in (tmp_path / "run" / "bounds.html").read_text(encoding="utf-8")
    label = gradleak(*command, "--prior", "attribute", "--measured", 0, "--out", tmp_path / "label", "--json")
    assert json.loads(label.stdout)["prior"]["listed"] == 2
    refused = gradleak(*command, "--prior", "sentences")
    assert refused.exit_code == 2 and "for text records" in refused.stderr.replace("\n", " ")


def test_a_fixed_batch_of_one_record_is_all_of_it(gradleak: Callable[..., Any], bound: list[object]) -> None:
    defense = "dpsgd(max_norm=1.0, noise_multiplier={knob}, sampling_rate=0.5, batches=fixed)"
    result = gradleak(*bound, "--defense", defense, "--measured", 8, "--json")
    every = gradleak(*bound, "--defense", "dpsgd(max_norm=1.0, noise_multiplier={knob})", "--measured", 8, "--json")
    assert result.exit_code == every.exit_code == 0
    levels = [json.loads(answer.stdout)["steps"] for answer in (result, every)]
    assert [step["claim"]["epsilon"] for step in levels[0]] == [step["claim"]["epsilon"] for step in levels[1]]
