"""What a guarantee rests on, in words: every choice of a plan shows, and none is said that was not made."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gradleak.privacy.plan.basis_text import RELATIONS, VIEWS, Basis, basis
from gradleak.privacy.plan.plan import Phase, Plan
from gradleak.privacy.plan.views import resolve

pytestmark = pytest.mark.contract


def words(*phases: tuple[float, int], **settings: Any) -> Basis:
    levels = phases or ((1.1, 100),)
    of = Plan(phases=tuple(Phase(noise_multiplier=z, steps=n) for z, n in levels), **settings)
    return basis(of, resolve(of))


def test_a_plain_plan() -> None:
    said = words(sampling="poisson", sampling_rate=0.01)
    assert said.mechanism == "Gaussian noise, multiplier 1.1" and said.composition == "100 releases"
    assert said.sampling == "Poisson of records, rate 0.01" and said.unit == "one record"
    assert said.sensitivity == "each example's gradient clipped to C" and said.view == VIEWS["final_model"]


@pytest.mark.parametrize(
    ("settings", "field", "fragment"),
    [
        ({"mechanism": "laplace"}, "mechanism", "Laplace"),
        ({"mechanism": "tree"}, "sensitivity", "in at most 7 nodes of a tree"),
        ({"mechanism": "tree"}, "composition", "1 tree over 100 steps"),
        ({"clip": "tensor", "tensors": 4}, "sensitivity", "√4·C"),
        ({"clip": "update"}, "unit", "one client, all its records"),
        ({"unit": "user", "records_per_user": 3}, "unit", "one user with at most 3 records"),
        ({"unit": "user", "records_per_user": 1}, "unit", "one user with at most 1 record"),
        ({"relation": "replace_one"}, "sensitivity", "distance 2C"),
        ({"relation": "replace_one"}, "relation", RELATIONS["replace_one"]),
        ({"sampling": "none"}, "sampling", "none: every step"),
        ({"sampling": "shuffle", "sampling_rate": 0.1}, "sampling", "shuffled epochs"),
        ({"view": "secure_aggregation", "clients": 4, "noise_by": "client"}, "view", "the sum over the clients"),
    ],
)
def test_a_choice_shows_where_it_matters_and_only_there(settings: dict[str, Any], field: str, fragment: str) -> None:
    assert fragment in getattr(words(**settings), field)
    assert fragment not in getattr(words(), field) or settings == {"sampling": "none"}


def test_sampling_that_the_adversary_sees_is_said_to_buy_nothing() -> None:
    said = words(sampling="poisson", sampling_rate=0.1, view="server_sees_each_update", noise_by="client")
    assert said.sampling.endswith("no amplification")


def test_a_schedule_names_its_ends_and_that_it_was_fixed() -> None:
    said = words((2.0, 5), (1.0, 5), (1.5, 1))
    assert said.mechanism.endswith("1 to 2") and said.composition == "11 releases, 3 noise levels fixed in advance"


def test_without_a_guarantee_there_is_no_mechanism_and_everything_else_is_said() -> None:
    said = basis(Plan(phases=(Phase(noise_multiplier=1.0, steps=2),), clip="none"), None)
    assert said.mechanism == "none" and said.sensitivity == "unbounded: nothing is clipped"
    assert all(dataclasses.asdict(said).values())
