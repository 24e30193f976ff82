"""What an adversary may read: the facts that an attack declared, as far as its threat model holds them, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradleak.core.errors import KnowledgeError, UnknownNameError
from gradleak.core.knowledge import (
    FACTS,
    ORACLE_FACTS,
    THREATS,
    Knowledge,
    Observation,
    View,
    find_threat,
    knowledge_of,
)
from gradleak.core.update import Update

pytestmark = pytest.mark.contract

facts = st.sampled_from(sorted(FACTS))
subsets = st.frozensets(facts)


def everything() -> dict[str, Any]:
    return {fact: f"the {fact}" for fact in FACTS}


@given(declared=subsets, fact=facts)
def test_a_view_gives_declared_facts_and_raises_on_every_other(declared: frozenset[str], fact: str) -> None:
    view = Knowledge(facts=everything()).view(declared)
    if fact in declared:
        assert view.get(fact) == view[fact] == f"the {fact}"
        return
    for read in (view.get, view.__getitem__):
        with pytest.raises(KnowledgeError, match=f"{fact}.*declaring it in `needs` or `uses`"):
            read(fact)


@given(declared=subsets, fact=facts)
def test_even_a_view_that_was_given_more_raises_on_what_was_not_declared(declared: frozenset[str], fact: str) -> None:
    view = View(declared=declared - {fact}, _facts=everything())
    with pytest.raises(KnowledgeError):
        view.get(fact)


def test_a_declared_fact_that_the_adversary_lacks_is_none_or_an_error() -> None:
    view = Knowledge(facts={"labels": None}).view(frozenset({"mask", "labels"}))
    assert view.get("mask") is None and view.get("labels") is None
    for fact in ("mask", "labels"):
        with pytest.raises(KnowledgeError, match=f"{fact}.*unknown to this adversary"):
            view[fact]


def test_what_is_missing_and_what_is_known() -> None:
    knowledge = Knowledge(facts={"subject": 1, "labels": None, "mask": 0})
    assert knowledge.missing(frozenset({"subject", "labels", "batch_size"})) == {"labels", "batch_size"}
    assert knowledge.names() == ("mask", "subject"), "a fact whose value is zero is known"


def test_an_unknown_fact_is_named() -> None:
    with pytest.raises(UnknownNameError, match="lables"):
        Knowledge(facts={"lables": 1})


def test_knowledge_keeps_what_it_was_given() -> None:
    given_facts = {"subject": 1}
    knowledge = Knowledge(facts=given_facts)
    given_facts["labels"] = 2
    assert knowledge.names() == ("subject",)
    with pytest.raises(TypeError):
        knowledge.facts["labels"] = 2  # type: ignore[index]


@pytest.mark.parametrize("name", THREATS)
def test_a_threat_model_holds_its_own_facts_and_no_more(name: str) -> None:
    threat = find_threat(name)
    held = knowledge_of(threat, everything())
    assert set(held.facts) == threat.facts <= set(FACTS)
    assert find_threat(name.replace("_", "-")) is threat


def test_only_the_two_told_adversaries_know_of_the_private_batch() -> None:
    told = {name: threat.facts & ORACLE_FACTS for name, threat in THREATS.items() if threat.facts & ORACLE_FACTS}
    assert told == {"informed_server": {"mask", "labels"}, "closed_world": {"candidates"}}
    assert THREATS["eavesdropper"].facts == {"subject"}
    assert "stages" not in THREATS["naive_server"].facts


def test_an_unknown_threat_shows_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="honest_server"):
        find_threat("honest_sever")


def test_an_observation_does_not_change() -> None:
    observation = Observation(update=Update({"w": torch.zeros(1)}), knowledge=Knowledge(facts={}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        observation.knowledge = Knowledge(facts=everything())  # type: ignore[misc]
