"""An interrupted run resumes where it stopped: no record is lost, doubled or different."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.contract


def _records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in {"seconds", "environment"}} for line in lines]


def _wait_for_lines(path: Path, count: int, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "the run wrote no record in time"
        time.sleep(0.01)


def _cut(path: Path, records: int, extra: bytes = b"") -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:records]) + extra)


@pytest.fixture
def whole(gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path) -> Path:
    """An uninterrupted run of four repeats."""
    assert gradleak(*tiny, "--repeats", 4, "--out", tmp_path / "whole").exit_code == 0
    return tmp_path / "whole"


def test_a_killed_run_ends_as_if_it_had_been_left_alone(
    gradleak: Callable[..., Any], start: Callable[..., Any], tiny: list[object], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = start(*tiny, "--repeats", 4, "--out", out)
    _wait_for_lines(out / "records.jsonl", 1, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = (out / "records.jsonl").read_bytes()
    assert 1 <= kept.count(b"\n") < 8
    result = gradleak(*tiny, "--repeats", 4, "--out", out)
    assert result.exit_code == 0
    assert _records(out) == _records(whole)


def test_an_interrupt_says_how_to_resume(start: Callable[..., Any], tiny: list[object], tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(*tiny, "--attacks", "token_support,tag(iterations=100000, patience=100000)", "--out", out)
    _wait_for_lines(out / "records.jsonl", 1, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert f"--out {out}" in stderr
    assert "1 of 2 cells" in stderr
    assert "Traceback" not in stderr


def test_a_torn_last_line_is_dropped_and_done_again(
    gradleak: Callable[..., Any], tiny: list[object], whole: Path
) -> None:
    before = _records(whole)
    _cut(whole / "records.jsonl", 3, b'{"cell":"torn","scen')
    assert gradleak(*tiny, "--repeats", 4, "--out", whole).exit_code == 0
    assert _records(whole) == before


def test_a_finished_run_is_not_run_again(gradleak: Callable[..., Any], tiny: list[object], whole: Path) -> None:
    before = (whole / "records.jsonl").read_bytes()
    assert gradleak(*tiny, "--repeats", 4, "--out", whole).exit_code == 0
    assert (whole / "records.jsonl").read_bytes() == before


def test_a_changed_plan_is_refused_and_names_the_change(
    gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path, notes: Path
) -> None:
    out = tmp_path / "run"
    assert gradleak(*tiny, "--attacks", "token_support", "--out", out).exit_code == 0
    before = (out / "records.jsonl").read_bytes()
    result = gradleak(*tiny, "--attacks", "token_support", "--seed", 7, "--out", out)
    assert result.exit_code == 2
    assert "seed: 0 → 7" in result.stderr
    notes.write_text(notes.read_text(encoding="utf-8") + "one more note\n", encoding="utf-8")
    result = gradleak(*tiny, "--attacks", "token_support", "--out", out)
    assert result.exit_code == 2
    assert "data.fingerprint" in result.stderr
    assert (out / "records.jsonl").read_bytes() == before


def test_a_second_writer_is_refused(gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path) -> None:
    from gradleak.harness.running.store import RunFolder, read_plan

    out = tmp_path / "run"
    assert gradleak(*tiny, "--attacks", "token_support", "--out", out).exit_code == 0
    with RunFolder(out, read_plan(out)):
        result = gradleak(*tiny, "--attacks", "token_support", "--out", out)
    assert result.exit_code == 2
    assert "Another process" in result.stderr


def test_a_folder_with_other_files_is_refused(gradleak: Callable[..., Any], tiny: list[object], tmp_path: Path) -> None:
    result = gradleak(*tiny, "--out", tmp_path)
    assert result.exit_code == 2
    assert "no run folder" in result.stderr
