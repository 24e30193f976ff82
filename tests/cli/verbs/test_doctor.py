"""``doctor`` shows the attention switch and what is installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.contract


def test_doctor_shows_the_double_backward_probe_and_the_switch(gradleak: Callable[..., Any]) -> None:
    found = json.loads(gradleak("doctor", "--json").stdout)
    assert found["attention"]["used_double_backward"] is True
    assert found["attention"]["used"] == "eager"
    assert set(found["extras"]) == {"demo", "images", "text-metrics", "peft", "opacus", "flower", "ray"}
    assert found["machine"]["threads"] >= 1


def test_doctor_is_readable_and_estimates_a_model(gradleak: Callable[..., Any]) -> None:
    result = gradleak("doctor", "random:gpt_neox", "--json")
    model = json.loads(result.stdout)["model"]
    assert model["double_backward"] is True
    assert model["peak_mib_estimate"] > model["update_mib"] > 0
    assert "attention.switch" in gradleak("doctor").stdout


def test_doctor_prints_one_thread_as_a_number(gradleak: Callable[..., Any]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = dict(line.split(maxsplit=1) for line in gradleak("doctor").stdout.splitlines() if line.strip())
    finally:
        torch.set_num_threads(before)
    assert rows["machine.threads"].strip() == "1"


def test_doctor_tells_what_is_wrong_with_a_model(gradleak: Callable[..., Any]) -> None:
    assert gradleak("doctor", "random:nonsense").exit_code == 2
