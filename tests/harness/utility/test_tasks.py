"""Synthetic tasks: held-out records train nobody, unknown tasks are named."""

from __future__ import annotations

import pytest

from gradleak.core.errors import UnknownNameError
from gradleak.harness.utility.tasks import make_task

pytestmark = pytest.mark.contract


def test_the_held_out_records_train_nobody() -> None:
    task = make_task("digits", 0)
    seen = {tuple(image.flatten().tolist()) for image in task.train.inputs}
    shared = sum(tuple(image.flatten().tolist()) in seen for image in task.test.inputs)
    assert task.test.size == 400 and task.train.size == 1397 and shared == 0


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
        make_task("digit", 0)
