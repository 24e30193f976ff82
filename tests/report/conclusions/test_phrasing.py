"""Numbers as read: never rounded to certainty, a guarantee never rounded down."""

from __future__ import annotations

import pytest

from gradleak.report.conclusions import phrasing

pytestmark = pytest.mark.contract


def test_guarantee_is_never_rounded_down() -> None:
    assert phrasing.guarantee({"epsilon": 8.1201, "delta": 1e-5}) == "ε = 8.13 at δ = 1e-05"
    assert phrasing.guarantee({"epsilon": 8.0, "delta": 1e-5}) == "ε = 8 at δ = 1e-05"
    assert phrasing.guarantee({"epsilon": 1234.1, "delta": 1e-5}) == "ε = 1240 at δ = 1e-05"
    assert phrasing.guarantee({"epsilon": None, "delta": 1e-5}) == "no guarantee"


def test_numbers_never_round_to_certainty() -> None:
    shown = [phrasing.number("token_recall", value) for value in (0.0, 0.001, 0.5, 0.999, 1.0)]
    assert shown == ["0%", "<1%", "50%", ">99%", "100%"]
    assert phrasing.number("psnr", 1e300) == "∞"
