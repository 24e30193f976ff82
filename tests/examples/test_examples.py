"""Every example runs, and what it reads are the texts that were trained on."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from examples.common import TEXTS

EXAMPLES = ("plain_pytorch", "trainer", "accelerate_loop", "peft_adapter", "federated_state")


@pytest.mark.contract
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_reads_the_words_of_the_batch(name: str, tmp_path: Path) -> None:
    lines = importlib.import_module(f"examples.{name}").main(tmp_path)
    words = {word for line in lines for word in line.partition(": ")[2].split()}
    assert {word for text in TEXTS for word in text.split()} <= words


@pytest.mark.contract
def test_every_example_is_on_the_page() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs" / "capture.md").read_text(encoding="utf-8")
    files = {file.stem for file in (root / "examples").glob("*.py")} - {"__init__", "common"}
    assert files == set(EXAMPLES)
    assert all(f"examples/{name}.py" in page for name in EXAMPLES)
