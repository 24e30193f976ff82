"""What computed a number: versions and commit as the machine has them, and nothing that names a person or a path."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import platform
from pathlib import Path

import pytest
import torch

from gradleak.harness.running.environment import environment_of, installed_version
from tests.support.tiny import text_model

pytestmark = pytest.mark.contract


def test_versions_are_those_of_the_installed_packages() -> None:
    plain = environment_of()
    assert plain["torch"] == torch.__version__ and plain["python"] == platform.python_version()
    assert plain["transformers"] == importlib.metadata.version("transformers")
    assert installed_version("no-such-package") is None
    assert {"commit", "dirty", "threads", "platform"} <= set(plain)


def test_a_model_adds_its_device_format_and_attention() -> None:
    plain = environment_of(text_model("gpt2"))
    assert (plain["device"], plain["dtype"]) == ("cpu", "float32") and plain["attention"]


def test_nothing_names_a_person_or_a_path() -> None:
    text = json.dumps(environment_of(text_model("gpt2")))
    assert str(Path.home()) not in text and str(Path.cwd()) not in text and platform.node() not in text
    assert getpass.getuser() not in text.split('"')
