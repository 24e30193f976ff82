"""Where a plan stands among the axes of the table: what is left open is filled in, and what changes nothing is no axis."""

from __future__ import annotations

from typing import Any

import pytest

from gradleak.privacy.plan.axes import Axes, Combination, axes_of, drawn_units
from gradleak.privacy.plan.plan import Phase, Plan

pytestmark = pytest.mark.contract


def axes(**settings: Any) -> Axes:
    return axes_of(Plan(phases=(Phase(noise_multiplier=1.0, steps=10),), **settings))


def test_every_step_that_uses_the_unit_draws_nothing() -> None:
    assert (axes().drawn, axes().sampling) == ("nothing", "none")
    full = axes(sampling="poisson", sampling_rate=1.0)
    assert (full.drawn, full.sampling) == ("nothing", "none")


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        ({}, "records"),
        ({"clip": "update"}, "clients"),
        ({"view": "server_sees_each_update", "noise_by": "client"}, "clients"),
        ({"view": "server_sees_each_update", "noise_by": "client", "sampled": "records"}, "records"),
    ],
)
def test_what_is_drawn_where_the_plan_does_not_say(settings: dict[str, Any], drawn: str) -> None:
    of = Plan(phases=(Phase(noise_multiplier=1.0, steps=10),), sampling="poisson", sampling_rate=0.1, **settings)
    assert drawn_units(of) == axes_of(of).drawn == drawn


def test_a_clipped_update_protects_its_client_whatever_the_unit() -> None:
    assert axes(clip="update").unit == "client" and axes().unit == "record"
    assert axes(unit="user", records_per_user=3).unit == "user"


def test_a_row_names_the_axes_on_which_it_does_not_cover_a_plan() -> None:
    row = Combination(
        name="x", clip=("example",), unit=("record",), drawn=("nothing",), sampling=("none",), view=("final_model",),
        relation=("add_or_remove",), law="full", composition="", theorem="", source="", accountants=(),
    )  # fmt: skip
    assert row.differences(axes()) == ()
    assert row.differences(axes(clip="update", sampling="poisson", sampling_rate=0.1)) == (
        "clip", "unit", "drawn", "sampling",
    )  # fmt: skip
