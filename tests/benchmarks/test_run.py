"""What a benchmark prints is what is recorded, with its commit; two results are compared number by number; every page names its origin."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import origin, provenance, run
from benchmarks.common.comparison import compare
from benchmarks.common.page import read_page, value
from benchmarks.common.quick import SMALLEST

pytestmark = pytest.mark.contract

SCRIPT = str(run.BENCHMARKS / "span" / "speed.py")
PAGE = """# Title

Ten seeds, 2 threads.

## First

| model | rank | recall |
|---|---|---|
| gpt2 | 8 | 0.25 |
| bert | 16 | 1/2 [0.1, 0.9] |

## Second

| a |
|---|
| 1,024 |
"""


def arguments(results: Path, *words: str) -> argparse.Namespace:
    reader = run.parser("")
    reader.add_argument("--seeds", type=int, default=3)
    reader.add_argument("--out", type=Path)
    return run.parse(reader, ["--results", str(results), *words])


def recorded(results: Path, *words: str, text: str = PAGE) -> dict[str, Any]:
    asked = arguments(results, *words)
    with run.record(SCRIPT, asked, seeds=range(asked.seeds)):
        print(text)
    return json.loads((results / "span" / f"{asked.page or 'speed'}.json").read_text(encoding="utf-8"))


def result(text: str) -> Mapping[str, Any]:
    return read_page(text).plain()


def table(*rows: str, head: str = "| model | rank | recall |") -> Mapping[str, Any]:
    return result("\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows]))


def test_the_page_is_what_was_printed_and_the_data_are_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recorded(tmp_path)
    page = (tmp_path / "span" / "speed.md").read_text(encoding="utf-8")
    assert page.startswith(PAGE.rstrip()) and capsys.readouterr().out.rstrip("\n").endswith(page.splitlines()[-1])
    assert [t["title"] for t in data["tables"]] == ["First", "Second"]
    assert data["tables"][0]["rows"] == [["gpt2", 8, 0.25], ["bert", 16, "1/2 [0.1, 0.9]"]]
    assert data["tables"][1] == {"title": "Second", "columns": ["a"], "rows": [[1024]]}
    assert data["lines"] == ["Ten seeds, 2 threads."]


def test_the_data_say_where_they_come_from(tmp_path: Path) -> None:
    data = recorded(tmp_path, "--seeds", "2")
    assert data["seeds"] == [0, 1] and data["arguments"] == {"seeds": 2, "out": None}
    assert {"processor", "cores", "threads"} <= set(data["machine"]) and {"python", "torch", "gradleak"} <= set(
        data["versions"]
    )
    assert data["seconds"]["wall"] >= 0 and isinstance(data["dirty"], bool) and data["commit"]


def test_the_last_line_names_command_commit_machine_and_seeds(tmp_path: Path) -> None:
    recorded(tmp_path, "--page", "small", "--seeds", "2", "--out", str(tmp_path / "cells"))
    line = (tmp_path / "span" / "small.md").read_text(encoding="utf-8").splitlines()[-1]
    commit, machine = origin.commit(), origin.machine()
    assert line.startswith(f"Recorded by `python -m benchmarks.span.speed --seeds 2 --out cells` at commit {commit}; ")
    assert machine["processor"] in line and line.endswith("; seeds 0, 1.")
    # Nothing of a result names a folder of the machine.
    assert str(tmp_path) not in (tmp_path / "span" / "small.json").read_text(encoding="utf-8")


def test_a_script_that_fails_leaves_the_earlier_result(tmp_path: Path) -> None:
    recorded(tmp_path)
    before = {file: file.read_bytes() for file in (tmp_path / "span").iterdir()}
    asked = arguments(tmp_path)
    with pytest.raises(ZeroDivisionError), run.record(SCRIPT, asked, seeds=()):
        print("half a page")
        raise ZeroDivisionError
    assert {file: file.read_bytes() for file in (tmp_path / "span").iterdir()} == before and len(before) == 2


def test_a_stored_cell_is_not_measured_again_and_its_commit_is_named(tmp_path: Path) -> None:
    calls: list[int] = []

    def measure() -> dict[str, int]:
        calls.append(1)
        return {"exact": 4}

    file = tmp_path / "cells" / "one.json"
    first, later = (run.Recording(commit=origin.Commit(name=name, dirty=False)) for name in ("aaaa", "bbbb"))
    assert first.cell(file, None) is None
    assert first.cell(file, measure) == later.cell(file, measure) == {"exact": 4, "measured_at": first.place()}
    assert len(calls) == 1 and later.origins == {first.place()} and first.place().startswith("commit aaaa on ")
    file.write_text('{"exact": 1}', encoding="utf-8")
    assert later.cell(file, measure) == {"exact": 1} and later.origins == {first.place(), run.UNRECORDED}


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([], False),
        (["commit 0123456789 on P, 2 cores, 2 threads"], False),
        (["commit abcdef0123 on P, 2 cores, 2 threads"], True),
        (["commit 0123456789 on P, 2 cores, 2 threads", run.UNRECORDED], True),
    ],
)
def test_the_last_line_says_when_cells_are_older_than_the_page(cells: list[str], said: bool) -> None:
    machine = {"processor": "P", "cores": 2, "threads": 2}
    plain = {"command": "c", "commit": "0123456789", "dirty": False, "machine": machine, "seeds": None}
    line = run.last_line({**plain, "cells_measured_at": cells})
    assert ("from stored cells" in line) == said and all((f"measured at {place}" in line) == said for place in cells)
    assert "P, 2 cores, 2 threads" in line and line.endswith("; seeds fixed in the script.")


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ((), "no seed"),
        ((7,), "seed 7"),
        ((0, 1), "seeds 0, 1"),
        (range(5), "seeds 0 to 4"),
        ((4, 1, 3), "seeds 1, 3, 4"),
    ],
)
def test_seeds_in_words(seeds: tuple[int, ...], words: str) -> None:
    assert run.seeds_in_words(seeds) == words


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3), ("-0.5", -0.5), ("+0.20", 0.2), (".67", 0.67), ("1e-05", 1e-5), ("22,713,986", 22713986), ("−2", -2)],
)
def test_a_cell_that_is_a_number_becomes_one(text: str, number: float) -> None:
    assert value(text) == number and type(value(text)) is type(number)


@pytest.mark.parametrize("text", ["20/20", "95%", "8×16", "–", "", "1.0.0", "0.1 ± 0.2", "e5", "."])
def test_other_cells_stay_text(text: str) -> None:
    assert value(text) == text


def test_bars_and_dashes_of_a_page_are_read_as_markdown_does() -> None:
    page = read_page("| a \\| b | c |\n| --- | :---: |\n| 1 | x |\n\n| no table |\n- item\n---\n")
    assert [(t.columns, t.rows) for t in page.tables] == [(["a | b", "c"], [[1, "x"]])]
    assert page.lines == ["| no table |", "- item", "---"]


def test_equal_results_show_nothing() -> None:
    assert compare(result(PAGE), result(PAGE)) == []


def test_numbers_that_moved_are_shown_with_their_relative_change() -> None:
    old = table("| gpt2 | 8 | 0.25 |", "| bert | 8 | 3/4 [0.1, 0.9] |", "| vit | 8 | 0 |")
    new = table("| gpt2 | 8 | 0.20 |", "| bert | 8 | 1/4 [0.1, 0.9] |", "| vit | 8 | 2 |")
    assert compare(old, new) == [
        "(untitled): gpt2: recall: 0.25 → 0.2 (-20.000%)",
        "(untitled): bert: recall: 3/4 [0.1, 0.9] → 1/4 [0.1, 0.9] (-66.667%)",
        "(untitled): vit: recall: 0 → 2 (from zero)",
    ]


def test_words_that_changed_are_shown_without_a_change_of_numbers() -> None:
    assert compare(table("| a | 1 | yes |"), table("| a | 1 | no 3 |")) == ["(untitled): a: recall: yes → no 3"]


def test_rows_and_tables_come_and_go() -> None:
    old = table("| gpt2 | 8 | 1 |", "| bert | 8 | 1 |")
    new = table("| bert | 8 | 1 |", "| gpt2 | 16 | 1 |", "| gpt2 | 8 | 1 |")
    assert compare(old, new) == ["(untitled): added: gpt2 | 16 | 1"]
    assert compare(new, old) == ["(untitled): gone: gpt2 | 16 | 1"]
    assert compare(old, result("")) == ["gone: table (untitled)"]
    assert compare(result("## T\n\n|a|\n|---|\n"), result("## T\n\n|b|\n|---|\n")) == ["T: columns were a, are b"]


def test_rows_that_only_measured_cells_tell_apart_are_paired_in_their_order() -> None:
    """Two seeds of one setting, which the table does not name: the recall must not be taken for the row's name."""
    old = table("| gpt2 | 8 | 0.5 |", "| gpt2 | 8 | 0.25 |")
    new = table("| gpt2 | 8 | 0.5 |", "| gpt2 | 8 | 0.75 |")
    assert compare(old, table("| gpt2 | 8 | 0.6 |", "| gpt2 | 8 | 0.75 |")) == [
        "(untitled): gpt2: recall: 0.5 → 0.6 (+20.000%)",
        "(untitled): gpt2: recall: 0.25 → 0.75 (+200.000%)",
    ]
    # One of two is the same: half of the rows have a partner by all their cells.
    assert compare(old, new) == ["(untitled): gone: gpt2 | 8 | 0.25", "(untitled): added: gpt2 | 8 | 0.75"]


def test_lines_outside_of_tables_are_compared_too() -> None:
    assert compare(result("8 of 8 exact.\n\nold"), result("7 of 8 exact.\n\nnew")) == [
        "text: gone: old",
        "text: 8 of 8 exact. → 7 of 8 exact. (-12.500%)",
        "text: added: new",
    ]


def test_the_command_compares_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path)
    recorded(tmp_path, "--page", "other", text=PAGE.replace("0.25", "0.50"))
    capsys.readouterr()
    run.main(["--compare", str(tmp_path / "span" / "speed.json"), str(tmp_path / "span" / "other.json")])
    old, new, *moved = capsys.readouterr().out.splitlines()
    assert old.startswith("old: Recorded by ") and new.startswith("new: Recorded by ")
    assert moved == ["First: gpt2: recall: 0.25 → 0.5 (+100.000%)"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A checkout of its own, and git in it; a file name with text writes and commits that file."""

    def git(*words: str) -> str:
        options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *options, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "--quiet")
    package = tmp_path / "src" / "gradleak" / "__init__.py"
    for file, text in ((package, ""), (tmp_path / "benchmarks" / "results" / "room" / "page.md", "| a |\n")):
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setattr(origin.gradleak, "__file__", str(package))
    return git


def test_results_do_not_make_a_commit_dirty_but_code_does(checkout: Callable[..., str], tmp_path: Path) -> None:
    name = checkout("rev-parse", "HEAD")[:10]
    (tmp_path / "benchmarks" / "results" / "room" / "new.md").write_text("x", encoding="utf-8")
    assert origin.commit() == origin.Commit(name=name, dirty=False)
    (tmp_path / "src" / "gradleak" / "new.py").write_text("x", encoding="utf-8")
    assert origin.commit() == origin.Commit(name=name, dirty=True)


def test_a_package_from_elsewhere_is_not_that_commit(
    checkout: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not origin.commit().dirty
    monkeypatch.setattr(origin.gradleak, "__file__", str(Path("elsewhere", "gradleak", "__init__.py").absolute()))
    assert origin.commit().dirty


def test_without_a_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert origin.commit() == origin.Commit(name="unknown", dirty=True)


def test_an_old_page_is_marked_with_the_commit_that_wrote_it_not_with_its_move(
    checkout: Callable[..., str], tmp_path: Path
) -> None:
    results = tmp_path / "benchmarks" / "results"
    written = checkout("rev-parse", "HEAD")[:10]
    (results / "other").mkdir()
    checkout("mv", str(results / "room" / "page.md"), str(results / "other" / "moved.md"))
    checkout("commit", "--quiet", "-m", "moved")
    (moved,) = provenance.unmarked(results)
    assert provenance.mark(moved)
    assert (
        moved.read_text(encoding="utf-8")
        == f"| a |\n\nPage last written by commit {written} (machine and seeds not recorded).\n"
    )
    assert provenance.unmarked(results) == []


def test_a_page_that_no_commit_has_is_left_alone(checkout: Callable[..., str], tmp_path: Path) -> None:
    page = tmp_path / "benchmarks" / "results" / "room" / "fresh.md"
    page.write_text("| b |\n", encoding="utf-8")
    assert not provenance.mark(page) and page.read_text(encoding="utf-8") == "| b |\n"


def test_every_committed_page_ends_with_a_generated_line() -> None:
    assert provenance.unmarked(run.RESULTS) == []


def test_every_page_with_data_is_the_page_of_these_data() -> None:
    for file in run.RESULTS.rglob("*.json"):
        data = json.loads(file.read_text(encoding="utf-8"))
        if "tables" in data:
            text = file.with_suffix(".md").read_text(encoding="utf-8")
            body, line = text.rstrip("\n").rsplit("\n", 1)
            assert read_page(body).plain() == {"tables": data["tables"], "lines": data["lines"]}, file.name
            assert line == run.last_line(data), file.name


ALONE = {"peers/dager.py", "peers/lamp.py", "peers/span.py", "defenses/sweep.py", "defenses/table.py"}
"""Print JSON for another script, write cells that carry their own commit, and make a page of those."""


def test_every_script_records() -> None:
    scripts = {
        file.relative_to(run.BENCHMARKS).as_posix(): file.read_text(encoding="utf-8")
        for file in run.BENCHMARKS.rglob("*.py")
        if file.parent.name != "common"
    }
    scripts = {name: text for name, text in scripts.items() if 'if __name__ == "__main__":' in text}
    assert len(scripts) > 30 and set(scripts) >= ALONE
    assert {name for name, text in scripts.items() if "with run.record(" not in text} == ALONE


def test_the_quick_tier_names_scripts_that_exist() -> None:
    assert all(importlib.util.find_spec(f"benchmarks.{script}") for script, *_ in SMALLEST)
