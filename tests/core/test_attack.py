"""The call that no attack can skip: needs are checked, undeclared facts stay closed, a failure is a status with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradleak.core.attack import Attack, Clock, Objective, Reconstruction, Status
from gradleak.core.errors import DataError, KnowledgeError, NotApplicableError
from gradleak.core.knowledge import Knowledge, Observation, View
from gradleak.core.update import Update

pytestmark = pytest.mark.contract

UPDATE = Update({"w": torch.ones(2)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Reads(Attack):
    """Reads one fact, of which it declares two."""

    summary: ClassVar[str] = "Reads one fact."
    needs: ClassVar[frozenset[str]] = frozenset({"subject"})
    uses: ClassVar[frozenset[str]] = frozenset({"labels"})

    fact: str
    reason: str = ""

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        if self.reason:
            raise NotApplicableError(self.reason)
        return Reconstruction(status=Status.CONVERGED, message=str(view.get(self.fact)))

    def objective(self, update: Update, view: View) -> Objective | None:
        return lambda candidate: float(view["subject"])


def observed(**facts: object) -> Observation:
    return Observation(update=UPDATE, knowledge=Knowledge(facts=facts))


def test_what_an_attack_needs_and_nobody_knows_is_named() -> None:
    result = Reads(fact="labels")(observed(labels=[1], mask=2), rng=torch.Generator())
    assert result.status is Status.NOT_APPLICABLE and result.records == ()
    assert "does not know: subject (the model that was trained" in result.message


def test_declared_facts_are_read_and_others_are_a_bug_of_the_attack() -> None:
    observation = observed(subject=3, labels=[1], mask=[[True]])
    assert Reads(fact="labels")(observation, rng=torch.Generator()).message == "[1]"
    assert Reads(fact="labels")(observed(subject=3), rng=torch.Generator()).message == "None"
    with pytest.raises(KnowledgeError, match="'mask' without declaring"):
        Reads(fact="mask")(observation, rng=torch.Generator())


def test_an_attack_that_cannot_run_says_why() -> None:
    result = Reads(fact="labels", reason="The head is frozen.")(observed(subject=3), rng=torch.Generator())
    assert (result.status, result.message) == (Status.NOT_APPLICABLE, "The head is frozen.")


def test_the_objective_sees_what_the_search_sees() -> None:
    objective = Reads(fact="labels").objective_on(observed(subject=3, mask=1))
    assert objective is not None and objective(None) == 3.0  # type: ignore[arg-type]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.floats(-0.5, 1.5, width=32),
    st.integers(0, 2),
    st.booleans(),
)
def test_confidence_is_a_probability_for_every_token_or_refused(
    lengths: list[int], value: float, row: int, longer: bool
) -> None:
    records = tuple(torch.zeros(length, dtype=torch.int64) for length in lengths)
    claims = [torch.full((length,), 0.5) for length in lengths]
    row %= len(lengths)
    claims[row] = torch.full((lengths[row] + longer,), value)
    if 0 <= value <= 1 and not longer:
        assert Reconstruction(records=records, confidence=tuple(claims), status=Status.CONVERGED).confidence
        return
    with pytest.raises(DataError, match="a probability in"):
        Reconstruction(records=records, confidence=tuple(claims), status=Status.CONVERGED)


def test_confidence_of_whole_numbers_or_of_fewer_records_is_refused() -> None:
    record = torch.zeros(2, dtype=torch.int64)
    for confidence in ((torch.ones(2, dtype=torch.int64),), (torch.ones(2), torch.ones(2))):
        with pytest.raises(DataError, match="Mend the attack"):
            Reconstruction(records=(record,), confidence=confidence, status=Status.CONVERGED)


def test_a_clock_without_a_limit_is_never_spent_and_one_of_no_time_always() -> None:
    assert not Clock().spent() and Clock(0.0).spent() and not Clock(3600.0).spent()


def test_progress_reaches_who_listens() -> None:
    heard: list[tuple[float, str]] = []
    Clock(report=lambda fraction, message: heard.append((fraction, message))).progress(0.5, "half")
    Clock().progress(0.5, "half")
    assert heard == [(0.5, "half")]


def test_every_status_is_a_sentence() -> None:
    assert all(status.value[0].isupper() and status.value.endswith(".") for status in Status)
    assert len({status.value for status in Status}) == len(Status)
