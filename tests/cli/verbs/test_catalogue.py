"""``list`` and ``explain`` show what the catalogue holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gradleak.harness.request.catalogue import KINDS, names

pytestmark = pytest.mark.contract


def test_list_names_every_method_of_every_kind(gradleak: Callable[..., Any]) -> None:
    found = json.loads(gradleak("list", "--json").stdout)
    assert {kind: [entry["name"] for entry in entries] for kind, entries in found.items()} == {
        kind: list(names(kind)) for kind in KINDS
    }
    assert all(entry["summary"] for entries in found.values() for entry in entries)


@pytest.mark.parametrize("kind", KINDS)
def test_list_of_one_kind_is_readable(gradleak: Callable[..., Any], kind: str) -> None:
    result = gradleak("list", kind)
    assert result.exit_code == 0
    assert all(name in result.stdout for name in names(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_everything_listed_can_be_explained(gradleak: Callable[..., Any], kind: str) -> None:
    for name in names(kind):
        found = json.loads(gradleak("explain", name, "--kind", kind, "--json").stdout)
        assert found["name"] == name
        text = gradleak("explain", name, "--kind", kind)
        assert text.exit_code == 0
        assert name in text.stdout


def test_an_unknown_kind_and_an_unknown_name_are_usage_errors(gradleak: Callable[..., Any]) -> None:
    for arguments in (("list", "attcks"), ("explain", "taag")):
        result = gradleak(*arguments)
        assert result.exit_code == 2
        assert "Did you mean" in result.stderr
