"""``gradleak audit --frontier`` and ``gradleak recommend``: what is measured, stored, resumed, refused, and never said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradleak.core.errors import UsageError
from gradleak.harness.running.store import read_records
from gradleak.harness.utility import frontier as audit_frontier
from gradleak.harness.utility.frontier import read_header, read_trained
from gradleak.harness.utility.training import Interval
from gradleak.report.conclusions.frontier import Point, Sweep, mark_front, read_sweep, remarks
from gradleak.report.conclusions.pooling import Pooled
from gradleak.report.conclusions.recommend import Limits, recommend

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


def test_recommend_reads_runs_and_ends_with_3_where_there_is_none(
    gradleak: Callable[..., Any], sweep: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    gradleak(*sweep, "--out", out)
    result = gradleak("recommend", out, "--leakage-below", 0.01, "--accuracy-drop-below", 0.01)
    assert result.exit_code == 3
    assert "None of the 3 settings" in result.stdout and "Guessing without any update" in result.stdout
    plain = gradleak("recommend", out, "--leakage-below", 0.01, "--accuracy-drop-below", 0.01, "--json")
    assert plain.exit_code == 3 and json.loads(plain.stdout)["found"] is None


@pytest.mark.parametrize(
    ("leakage", "drop", "message"),
    [
        (0.0, 0.1, "--leakage-below must be"),
        (0.1, 1.5, "--accuracy-drop-below must be"),
        ("nan", 0.1, "must be above 0"),
    ],
)
def test_recommend_refuses_limits_out_of_range(
    gradleak: Callable[..., Any], tmp_path: Path, leakage: object, drop: object, message: str
) -> None:
    result = gradleak("recommend", tmp_path, "--leakage-below", leakage, "--accuracy-drop-below", drop)
    assert result.exit_code == 2 and message in result.stderr


def test_recommend_refuses_a_run_without_a_frontier(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path
) -> None:
    gradleak(*tiny, "--out", tmp_path / "run")
    result = gradleak("recommend", tmp_path / "run", "--leakage-below", 0.5, "--accuracy-drop-below", 0.5)
    assert result.exit_code == 2 and "holds no frontier" in result.stderr


def _point(
    knob: str, leakage: float, accuracy: float, *, reach: float = 0.05, adaptive: bool = True, tested: bool = True
) -> Point:
    return Point(
        knob=knob,
        defense=f"gaussian(std={knob})",
        attack="span",
        leakage=Pooled(
            value=leakage,
            low=leakage - reach,
            high=leakage + reach,
            chance=None,
            n=20,
            higher_is_better=True,
            has_interval=True,
        ),
        guessing=0.1,
        tested=tested,
        adaptive=adaptive,
        accuracy=Interval(value=accuracy, low=accuracy - 0.01, high=accuracy + 0.01, n=5),
        drop=Interval(value=0.9 - accuracy, low=0.89 - accuracy, high=0.91 - accuracy, n=5),
        epsilon=None,
        guarantee="no guarantee",
        seconds=1.0,
        kept_bytes=0,
        reason="",
    )


def _sweep(*points: Point, metric: str = "token_recall") -> Sweep:
    return Sweep(run="r", template=TEMPLATE, metric=metric, task="t", chance=0.25, points=points)


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [_point("a", 0.9, 0.9), _point("b", 0.5, 0.8), _point("c", 0.6, 0.7), _point("d", 0.05, 0.6)]
    # Below guessing (0.1) nothing is gained: "e" leaks what "d" does and costs more.
    points += [_point("e", 0.0, 0.55), _point("f", 0.0, 0.95, tested=False)]
    assert [point.knob for point in mark_front(points) if point.front] == ["a", "b", "d"]


def test_the_cheapest_setting_that_meets_both_limits_is_named() -> None:
    points = (_point("a", 0.9, 0.9), _point("b", 0.2, 0.85), _point("c", 0.2, 0.84), _point("d", 0.15, 0.5))
    answer = recommend([_sweep(*points)], Limits(leakage=0.3, drop=0.1))
    assert answer.found is not None and answer.found.point.knob == "b"
    text = " ".join(answer.sentences())
    assert "gaussian(std=b)" in text and "protect" not in text and "safe" not in text


def test_a_setting_that_was_not_tested_says_so() -> None:
    swept = _sweep(_point("u", 0.2, 0.8, tested=False), _point("n", 0.2, 0.8, adaptive=False), _point("a", 0.2, 0.8))
    assert [text.split(":")[0] for text in remarks(swept)] == ["u", "n"]
    missing = replace(_point("m", 0.2, 0.8), accuracy=None, drop=None, reason="No place for this stage.")
    assert remarks(_sweep(missing)) == ("m: No place for this stage.",)


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


def test_estimates_alone_do_not_suffice() -> None:
    wide = _point("w", 0.2, 0.85, reach=0.2)
    answer = recommend([_sweep(wide)], Limits(leakage=0.3, drop=0.1))
    assert answer.found is None and [each.point.knob for each in answer.close] == ["w"]
    assert "more --repeats" in " ".join(answer.sentences())
    single = replace(wide, drop=Interval(value=0.0, low=None, high=None, n=1))
    assert recommend([_sweep(single)], Limits(leakage=1.0, drop=1.0)).found is None


@pytest.mark.parametrize("change", [{"adaptive": False}, {"tested": False}])
def test_a_setting_that_no_informed_attack_tested_is_not_named(change: dict[str, bool]) -> None:
    answer = recommend([_sweep(_point("x", 0.12, 0.89, **change))], Limits(leakage=0.3, drop=0.1))
    assert answer.found is None and answer.close == ()
    assert "Not counted" in " ".join(answer.sentences()) and "gaussian(std=x)" in " ".join(answer.sentences())
    counted = recommend([_sweep(_point("y", 0.12, 0.89))], Limits(leakage=0.3, drop=0.1))
    assert "Not counted" not in " ".join(counted.sentences())


def test_runs_of_different_metrics_are_not_mixed() -> None:
    with pytest.raises(UsageError, match="ssim and token_recall"):
        recommend([_sweep(metric="ssim"), _sweep()], Limits(leakage=0.5, drop=0.5))
