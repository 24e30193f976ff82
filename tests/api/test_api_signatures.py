"""Every verb is a function whose ``help()`` stands alone, and importing one loads nothing heavy."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import pytest

import gradleak
from gradleak import api

pytestmark = pytest.mark.contract

VERBS = {name: verb for name in api.__all__ if inspect.isfunction(verb := getattr(api, name))}
VERBS["capture"] = type(api.capture).__call__
"""``capture`` is a verb that carries further ones, ``capture.from_gradients`` among them."""


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_parameter_is_named_typed_and_explained(verb: Callable[..., Any]) -> None:
    signature, text = inspect.signature(verb), inspect.getdoc(verb) or ""
    arguments = text.split("Args:")[1].split("\n\n")[0]
    explained = {
        name.strip() for line in re.findall(r"^    ([\w, ]+):", arguments, re.MULTILINE) for name in line.split(",")
    }
    assert explained == set(signature.parameters) - {"self"}
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    assert "as in " not in text and "See " not in text


def test_the_verbs_of_the_command_line_are_functions() -> None:
    assert set(VERBS) == {
        "account", "attack", "audit", "bound", "capture", "check", "compare", "doctor", "explain", "inspect_update",
        "list_methods", "predict", "recommend", "report",
    }  # fmt: skip
    assert len(inspect.signature(gradleak.audit).parameters) >= 14
    assert all(getattr(gradleak, name) is verb for name, verb in VERBS.items() if name not in ("report", "capture"))
    assert gradleak.audit.__module__ == "gradleak.api.audit"


def test_importing_the_verbs_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "numpy", "scipy", "pydantic", "dp_accounting")
    code = f"import gradleak.api, sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_says_that_it_is_typed() -> None:
    assert files("gradleak").joinpath("py.typed").is_file()
