"""A run folder after a kill at any byte: complete records stay, a torn one is undone, and no other plan or writer gets in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gradleak.core.errors import DataError, PlanChangedError, UsageError
from gradleak.core.record import Record
from gradleak.harness.request.plan import Plan
from gradleak.harness.running.store import (
    PLAN,
    RECORDS,
    TENSORS,
    RunFolder,
    read_plan,
    read_records,
    write_atomically,
)
from tests.support.plans import plan

pytestmark = pytest.mark.contract


def record(cell: str) -> Record:
    empty: dict[str, Any] = {name: {} for name in ("scenario", "attack", "knowledge", "status", "scores", "baseline")}
    empty |= {name: {} for name in ("privacy", "environment", "seconds")}
    return Record(cell=cell, defenses=[], seed=0, repeat=0, flags=[], **empty)


@pytest.fixture
def of() -> Plan:
    return plan()


def test_what_was_appended_is_there_when_opened_again(tmp_path: Path, of: Plan) -> None:
    with RunFolder(tmp_path / "run", of) as run:
        run.append(record("a"), {"guess.0": torch.arange(3)}, {"modality": "text"})
        assert run.done == {"a"}
    assert read_records(tmp_path / "run") == (record("a"),) and read_plan(tmp_path / "run") == of
    with RunFolder(tmp_path / "run", of) as run:
        assert run.done == {"a"}
    assert load_file(tmp_path / "run" / TENSORS / "a.safetensors")["guess.0"].tolist() == [0, 1, 2]


def test_a_kill_at_any_byte_of_the_last_record_leaves_the_others(tmp_path: Path, of: Plan) -> None:
    first, last = ((record(cell).to_json() + "\n").encode() for cell in ("a", "b"))
    for cut in (0, 1, len(last) // 2, len(last) - 1):
        folder = tmp_path / f"run{cut}"
        with RunFolder(folder, of):
            pass
        (folder / RECORDS).write_bytes(first + last[:cut])
        with RunFolder(folder, of) as run:
            assert run.done == {"a"}
            run.append(record("b"), {}, {})
        assert [r.cell for r in read_records(folder)] == ["a", "b"]


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path, of: Plan) -> None:
    with RunFolder(tmp_path / "run", of):
        pass
    (tmp_path / "run" / RECORDS).write_text("{broken\n" + record("a").to_json() + "\n")
    with pytest.raises(DataError, match="line 1: Not a record"):
        RunFolder(tmp_path / "run", of)


def test_one_writer_holds_the_folder(tmp_path: Path, of: Plan) -> None:
    with RunFolder(tmp_path / "run", of), pytest.raises(UsageError, match="Another process"):
        RunFolder(tmp_path / "run", of)
    with RunFolder(tmp_path / "run", of):
        pass


def test_another_plan_is_refused_and_what_differs_is_named(tmp_path: Path, of: Plan) -> None:
    with RunFolder(tmp_path / "run", of):
        pass
    with pytest.raises(PlanChangedError, match=r"Changed: .*seed"):
        RunFolder(tmp_path / "run", plan(seed=9))
    assert read_plan(tmp_path / "run") == of


def test_records_are_replaced_as_a_whole(tmp_path: Path, of: Plan) -> None:
    with RunFolder(tmp_path / "run", of) as run:
        run.append(record("a"), {}, {})
        run.replace([record("b"), record("c")])
        run.append(record("d"), {}, {})
    assert [r.cell for r in read_records(tmp_path / "run")] == ["b", "c", "d"]


def test_what_is_no_run_is_left_alone(tmp_path: Path, of: Plan) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder(tmp_path / "file", of)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="holds other files"):
        RunFolder(tmp_path / "other", of)
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match=f"holds no {PLAN}"):
        read_records(tmp_path / "other")


def test_a_run_without_records_says_how_to_go_on(tmp_path: Path, of: Plan) -> None:
    with RunFolder(tmp_path / "run", of):
        pass
    with pytest.raises(DataError, match="no complete record yet"):
        read_records(tmp_path / "run")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
