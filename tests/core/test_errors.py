"""One exception tree: its drawing in the docstring is the tree, and an unknown name shows the nearest known one."""

from __future__ import annotations

import inspect
import re

import pytest

from gradleak.core import errors
from gradleak.core.errors import GradleakError, UnknownNameError, UsageError

pytestmark = pytest.mark.contract

CLASSES = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__}


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = re.findall(r"^( *(?:│ +)?)[├└]── (\w+)", inspect.getdoc(errors) or "", re.MULTILINE)
    parents: dict[str, str] = {}
    last = "GradleakError"
    for indent, name in drawn:
        parents[name] = last if "│" in indent else "GradleakError"
        if "│" not in indent:
            last = name
    assert parents == {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items() if cls is not GradleakError}


def test_what_a_caller_can_mend_is_told_from_what_an_attack_says() -> None:
    mendable = {name for name, cls in CLASSES.items() if issubclass(cls, UsageError)}
    assert {"KnowledgeError", "NotApplicableError"} == set(CLASSES) - mendable - {"GradleakError"}


def test_an_unknown_name_shows_the_nearest_and_all() -> None:
    message = str(UnknownNameError("metric", "rouge1L", ["ssim", "rougeL", "mse"]))
    assert message == "Unknown metric 'rouge1L'. Did you mean 'rougeL'? Known: mse, rougeL, ssim."


def test_a_name_like_none_shows_no_nearest() -> None:
    assert str(UnknownNameError("fact", "qqq", [])) == "Unknown fact 'qqq'. Known: none."
