"""Data goes to standard output, messages to standard error, and wrong use ends in one message with its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from gradleak.cli.common.output import INTERRUPTED, USAGE_ERROR, errors_shown, new_folder, out, print_json
from gradleak.core.errors import DataError, KnowledgeError

pytestmark = pytest.mark.contract


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(DataError("No file."), USAGE_ERROR, "Error: No file."), (KnowledgeError("x"), USAGE_ERROR, "Error: x"), (KeyboardInterrupt(), INTERRUPTED, "Interrupted.")],
)  # fmt: skip
def test_what_gradleak_raises_is_a_message_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, errors_shown():
        raise error
    captured = capsys.readouterr()
    assert (ended.value.exit_code, captured.err.strip(), captured.out) == (code, said, "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors_shown():
        raise ZeroDivisionError


def test_markup_in_a_message_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), errors_shown():
        raise DataError("The file [red]a[/red] is empty.")
    assert "[red]a[/red]" in capsys.readouterr().err


def test_json_reads_back_and_refuses_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"ε": 1.5, "none": None})
    assert json.loads(capsys.readouterr().out) == {"ε": 1.5, "none": None}
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"ε": float("inf")})


def test_a_pipe_is_wide_enough_for_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    out().print("x" * 120)
    assert "x" * 120 in capsys.readouterr().out


@pytest.mark.parametrize(("model", "name"), [("org/My Model!", "My-Model"), ("///", "model"), ("a.b-c", "a.b-c")])
def test_a_new_folder_is_named_after_the_model_and_never_there(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "2020-01-01-000000")
    first = new_folder(model)
    assert first == Path("runs") / f"2020-01-01-000000-{name}"
    first.mkdir(parents=True)
    assert new_folder(model) == Path(f"{first}-1")
