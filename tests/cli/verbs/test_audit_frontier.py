"""``gradleak audit --frontier`` and ``gradleak recommend``: what is measured, stored, resumed, refused, and never said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradleak.harness.running.store import read_records
from gradleak.harness.utility import frontier as audit_frontier
from gradleak.harness.utility.frontier import read_header, read_trained
from gradleak.report.conclusions.frontier import read_sweep, remarks

pytestmark = pytest.mark.contract

TEMPLATE = "gaussian(relative_std={knob})"


@pytest.fixture
def sweep(tiny: list[object]) -> list[object]:
    """A frontier of two noise levels, with trainings of three rounds."""
    # The last settings win, so one attack is enough here.
    return [
        *(part if part != "token_support,tag(iterations=3)" else "token_support" for part in tiny),
        *("--frontier", TEMPLATE, "--knobs", "0.01,100", "--utility-rounds", 3, "--utility-seeds", 2),
    ]


def test_a_frontier_measures_every_knob_and_shows_it(
    gradleak: Callable[..., Any], sweep: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = gradleak(*sweep, "--out", out, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)["frontier"]
    points = found["points"]
    assert [point["knob"] for point in points] == [None, "0.01", "100"]
    assert found["metric"] == "token_recall"
    assert all(point["guarantee"] == "no guarantee" and point["epsilon"] is None for point in points)
    assert points[0]["drop"]["value"] == 0.0 and points[0]["leakage"]["value"] > points[2]["leakage"]["value"]
    assert all(point["accuracy"]["n"] == 2 and point["adaptive"] for point in points)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What the defense costs" in page and 'class="dot front"' in page
    assert page.count("Training loss over 3 rounds") == 3 and page.count('class="curve"') >= 2 * 3
    assert "protected" not in page and "http" not in page.split("<main>")[1].split("</main>")[0]
    text = gradleak("report", out)
    assert text.exit_code == 0


def test_a_frontier_that_names_no_attack_tries_one_that_reads_signs(
    gradleak: Callable[..., Any], sweep: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sign`` leaves nothing to the other attacks once the token rows are withheld: a weak attack is no strong defense."""

    class Enough(Exception):
        pass

    def stop(prepared: Any, folder: Path, *, quiet: bool) -> None:
        raise Enough([call.type for call in prepared.plan.attacks])

    monkeypatch.setattr("gradleak.cli.verbs.audit._run", stop)
    place = sweep.index("--attacks")
    with pytest.raises(Enough, match="sign_span"):
        gradleak(*sweep[:place], *sweep[place + 2 :], "--out", tmp_path / "run")


def test_the_trainings_use_the_same_seeds_and_draws(
    gradleak: Callable[..., Any], sweep: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    gradleak(*sweep, "--out", out, "--seed", 7)
    lines = read_trained(out)
    by_seed: dict[int, set[str]] = {}
    for line in lines:
        by_seed.setdefault(line.seed, set()).add(line.draws)
    assert sorted(by_seed) == [7, 8]
    assert all(len(draws) == 1 for draws in by_seed.values()) and by_seed[7] != by_seed[8]
    assert len({line.losses[0] for line in lines if line.seed == 7}) == 1, "the same weights at the start"


def test_a_frontier_resumes_where_it_was_killed(
    gradleak: Callable[..., Any], sweep: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    gradleak(*sweep, "--out", out)
    file = out / "utility.jsonl"
    whole = read_trained(out)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:20], encoding="utf-8")
    trained: list[str] = []
    train = audit_frontier.train

    def counted(*arguments: Any) -> Any:
        trained.append("once")
        return train(*arguments)

    monkeypatch.setattr(audit_frontier, "train", counted)
    result = gradleak(*sweep, "--out", out)
    assert len(trained) == len(whole) - 3
    again = read_trained(out)
    assert [replace(each, cpu_seconds=0.0) for each in again] == [replace(each, cpu_seconds=0.0) for each in whole]
    assert "training [4/6]" in result.stderr and "training [3/6]" not in result.stderr
    other = gradleak(*sweep, "--out", out, "--utility-rounds", 4)
    assert other.exit_code == 2 and "rounds: 3 → 4" in other.stderr


def test_the_report_names_the_command_that_repeats_it(
    gradleak: Callable[..., Any], sweep: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    gradleak(*sweep, "--out", out)
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    assert "--frontier 'gaussian(relative_std={knob})' --knobs 0.01,100" in plan["command"]
    assert "--defenses" not in plan["command"]
    header = read_header(out)
    assert header is not None and header.knobs == ("0.01", "100") and header.rounds == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frontier", "gaussian(relative_std=0.1)", "--knobs", "0.1"], "has no {knob}"),
        (["--frontier", TEMPLATE, "--knobs", ""], "holds no value"),
        (["--frontier", TEMPLATE, "--knobs", " , "], "holds no value"),
        (["--frontier", TEMPLATE, "--knobs", "0.1,much"], "'much' is not a finite number"),
        (["--frontier", TEMPLATE, "--knobs", "0.1,inf"], "'inf' is not a finite number"),
        (["--frontier", TEMPLATE, "--knobs", "0.1,0.10"], "a number twice"),
        (["--frontier", TEMPLATE, "--knobs", "0.1,-1"], "relative_std"),
        (["--frontier", "gausian(std={knob})", "--knobs", "1"], "Did you mean 'gaussian'"),
        (["--frontier", TEMPLATE], "Give --knobs"),
        (["--knobs", "0.1"], "belongs to --frontier"),
        (["--utility-seeds", "3"], "belongs to --frontier"),
        (["--frontier", TEMPLATE, "--knobs", "1", "--defenses", "sign()"], "takes the place of --defenses"),
        (["--frontier", TEMPLATE, "--knobs", "1", "--utility-rounds", "0"], "rounds of at least 1"),
    ],
)
def test_wrong_use_is_refused_before_any_work(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path, arguments: list[object], message: str
) -> None:
    out = tmp_path / "run"
    result = gradleak(*tiny, *arguments, "--out", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_one_failed_training_spoils_the_point(
    gradleak: Callable[..., Any], sweep: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    gradleak(*sweep, "--out", out)
    lines = [json.loads(line) for line in (out / "utility.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[-1] |= {"accuracy": None, "reason": "The update holds NaN."}
    (out / "utility.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    swept = read_sweep(out, read_records(out))
    assert swept is not None and swept.points[-1].accuracy is None and not swept.points[-1].front
    assert remarks(swept) == ("100: The update holds NaN.",)
    assert swept.points[1].accuracy is not None
