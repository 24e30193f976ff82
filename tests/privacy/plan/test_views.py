"""What each adversary sees of a plan: sampling that is no secret buys nothing, and numbers are those of plain counting."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradleak.privacy.plan.plan import Phase, Plan
from gradleak.privacy.plan.views import nodes, refusal, resolve

pytestmark = pytest.mark.oracle


def plan(*phases: tuple[float, int], **settings: Any) -> Plan:
    levels = phases or ((1.0, 10),)
    return Plan(phases=tuple(Phase(noise_multiplier=z, steps=n) for z, n in levels), **settings)


@given(st.integers(1, 200))
def test_a_leaf_lies_in_as_many_nodes_as_the_deepest_of_a_drawn_tree(leaves: int) -> None:
    most = 0
    for leaf in range(leaves):
        count, size = 0, 1
        while size <= leaves:
            start = leaf // size * size
            count += start + size <= leaves
            size *= 2
        most = max(most, count)
    assert nodes(leaves) == most


@given(st.lists(st.tuples(st.floats(0.1, 5.0), st.integers(1, 6)), min_size=1, max_size=4), st.integers(1, 8))
def test_a_server_that_sees_who_takes_part_is_charged_the_least_noisy_steps(
    levels: list[tuple[float, int]], participations: int
) -> None:
    participations = min(participations, sum(steps for _, steps in levels))
    of = plan(
        *levels, sampling="poisson", sampling_rate=0.5, view="server_sees_each_update", noise_by="client",
        participations=participations,
    )  # fmt: skip
    release = resolve(of)
    cheapest = sorted(itertools.chain.from_iterable([z] * n for z, n in levels))[:participations]
    charged = sorted(itertools.chain.from_iterable([p.noise_multiplier] * p.steps for p in release.phases))
    assert charged == pytest.approx(cheapest) and release.law == "full"


def test_records_drawn_in_secret_stay_secret() -> None:
    of = plan(
        sampling="poisson", sampling_rate=0.1, view="server_sees_each_update", sampled="records", noise_by="client"
    )
    assert (resolve(of).law, resolve(of).rate, resolve(of).steps) == ("poisson", 0.1, 10)


def test_honest_clients_add_their_noise() -> None:
    of = plan(view="secure_aggregation", clients=9, noise_by="client")
    assert resolve(of).phases[0].noise_multiplier == pytest.approx(3.0)


@pytest.mark.parametrize(("mechanism", "factor"), [("gaussian", 1 / 2), ("laplace", 1 / 4)])
def test_parts_that_are_clipped_each_add_up(mechanism: str, factor: float) -> None:
    assert resolve(plan(clip="tensor", tensors=4, mechanism=mechanism)).phases[0].noise_multiplier == pytest.approx(
        factor
    )


def test_a_tree_counts_as_one_release_of_its_nodes() -> None:
    release = resolve(plan((2.0, 8), mechanism="tree"))
    assert release.steps == 1 and release.phases[0].noise_multiplier == pytest.approx(2.0 / math.sqrt(4))
    assert release.relation == "zero_out"


def test_a_user_is_a_group_unless_the_whole_update_is_clipped() -> None:
    assert resolve(plan(unit="user", records_per_user=5)).distance == 5
    assert resolve(plan(unit="user", records_per_user=5, clip="update")).distance == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"clip": "none"}, "nothing is clipped"),
        ({"clip": "data"}, "follows the private data"),
        ({"unnoised": ("head.bias",)}, "head.bias is released without noise"),
        ({"noise_seed": "reused"}, "same noise is drawn"),
        ({"sampling": "poisson", "sampling_rate": 0.1, "divisor": "actual"}, "actual batch size"),
        ({"view": "server_sees_each_update", "noise_by": "server"}, "the server adds the noise"),
    ],
)
def test_plans_without_any_epsilon_say_why_and_their_neighbors_do_not(settings: dict[str, Any], words: str) -> None:
    assert words in (refusal(plan(**settings)) or "")
    assert refusal(plan()) is None


def test_one_step_without_noise_is_enough() -> None:
    assert "some step adds no noise" in (refusal(plan((1.0, 9), (0.0, 1))) or "")
    assert refusal(plan((1.0, 1), noise_seed="reused")) is None, "one step draws once"
