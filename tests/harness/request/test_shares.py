"""Shares round-trip, and one that cannot be is refused."""

from __future__ import annotations

import pytest

from gradleak.core.errors import SpecError, UnknownNameError
from gradleak.harness.request.shares import parse_share, share_spec

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("text", ["gradient(dtype=bf16, dropout=true)", "delta(steps=5, lr=0.001, optimizer=adamw)"])
def test_shares_round_trip(text: str) -> None:
    training = parse_share(text)
    assert parse_share(str(share_spec(training))) == training


@pytest.mark.parametrize(
    "text", ["gradient()+delta()", "gradient(share=delta)", "delta(steps=0)", "gradient(speed=1)", ""]
)
def test_a_share_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_share(text)


def test_an_unknown_share_is_named() -> None:
    with pytest.raises(UnknownNameError, match="weights"):
        parse_share("weights()")
