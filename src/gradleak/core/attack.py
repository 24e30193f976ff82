"""An attack proposes; it holds no truth and no score. The base class owns the call, so that needs are checked,
failures are told from results, and no attack can skip either. Must not know the judge.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, final

import torch
from torch import Tensor

from gradleak.core.batch import Modality
from gradleak.core.errors import DataError, NotApplicableError
from gradleak.core.knowledge import FACTS, Observation, View
from gradleak.core.update import Update


class Status(Enum):
    """How an attack ended. The value is the sentence that reports print."""

    EXACT = "Certified: the update of the reconstruction equals the released one up to rounding."
    CONVERGED = "The search reached its own stopping rule."
    ITERATIONS_SPENT = "The search stopped at its iteration limit."
    BUDGET_SPENT = "The search stopped at the time budget; its best result so far is scored."
    NOTHING_FOUND = "The attack ran to its end and proposes nothing."
    UNDECIDED = "What is proposed is likely; the update does not tell whether it is complete."
    DIVERGED = "The objective became infinite or undefined; the attack failed."
    NOT_APPLICABLE = "The attack does not apply to this observation."


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """What an attack proposes.

    Attributes:
        records: token ids ``[length]`` or pixels ``[channels height width]``, one per proposed record.
        ordered: False if ``records`` holds one bag of tokens for the whole batch, in no order.
        confidence: per record of text, for every token the probability, as the attack sees it, that it is right: that the
            record holds it in this place or, of a bag, that some record of the batch holds it. Empty: the attack does not say.
        ranking: of an attack that chooses among known records: all of them, the likeliest first.
        labels: proposed class ids, or None.
        objective: the attack's own objective at the proposal (smaller is better), or None.
        trace: ``(iteration, objective)`` of the winning restart.
        certificate: relative error of the recomputed update, or None if it was not recomputed.
        tensor_errors: the same for every shared tensor by name; empty if it was not recomputed.
        adapted: names of the stages that the attack took into account.

    Raises:
        DataError: if ``confidence`` is neither empty nor a probability for every token of every record.
    """

    records: tuple[Tensor, ...] = ()
    ordered: bool = True
    confidence: tuple[Tensor, ...] = ()
    ranking: tuple[Tensor, ...] = ()
    labels: tuple[int, ...] | None = None
    status: Status
    message: str = ""
    objective: float | None = None
    trace: tuple[tuple[int, float], ...] = ()
    certificate: float | None = None
    tensor_errors: Mapping[str, float] = field(default_factory=dict)
    adapted: tuple[str, ...] = ()
    statistics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.confidence and not _fits(self.confidence, self.records):
            shapes = [[tuple(each.shape) for each in side] for side in (self.confidence, self.records)]
            raise DataError(
                f"Confidence of shapes {shapes[0]} was given for records of shapes {shapes[1]}; it must hold a probability in "
                "[0, 1] for every token of every record, or be empty. Mend the attack."
            )


def _fits(confidence: tuple[Tensor, ...], records: tuple[Tensor, ...]) -> bool:
    return len(confidence) == len(records) and all(
        sure.is_floating_point() and sure.shape == record.shape and bool(((sure >= 0) & (sure <= 1)).all())
        for sure, record in zip(confidence, records, strict=True)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A point of a search space: embeddings ``[batch seq model]`` or pixels, and label probabilities."""

    inputs: Tensor
    labels: Tensor


Objective = Callable[[Candidate], float]


class Clock:
    """The time an attack may take, and where it reports how far it is. ``seconds=None`` is no limit."""

    def __init__(self, seconds: float | None = None, report: Callable[[float, str], None] | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._report = report

    def spent(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def progress(self, fraction: float, message: str) -> None:
        """``fraction`` of the work done, in [0, 1], and a short message; free of cost if nobody listens."""
        if self._report is not None:
            self._report(fraction, message)


class Attack(ABC):
    """A method of recovery. Subclasses are frozen dataclasses whose fields are the knobs, one per file."""

    summary: ClassVar[str]
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text", "image"})
    losses: ClassVar[frozenset[str]] = frozenset()
    """Losses that the attack is written for; empty if it takes any or says itself which."""
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset()

    @final
    def __call__(self, observation: Observation, *, rng: torch.Generator, clock: Clock | None = None) -> Reconstruction:
        """Runs the attack on an observation; every outcome, failure included, is a ``Reconstruction``."""
        missing = observation.knowledge.missing(self.needs)
        if missing:
            reasons = "; ".join(f"{fact} ({FACTS[fact]})" for fact in sorted(missing))
            return Reconstruction(status=Status.NOT_APPLICABLE, message=f"This adversary does not know: {reasons}.")
        view = observation.knowledge.view(self.needs | self.uses)
        try:
            return self.run(observation.update, view, rng, clock or Clock())
        except NotApplicableError as reason:
            return Reconstruction(status=Status.NOT_APPLICABLE, message=str(reason))

    @abstractmethod
    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        """The attack itself. Raises ``NotApplicableError`` with the reason if it cannot run here."""

    def objective(self, update: Update, view: View) -> Objective | None:
        """The function that the search minimizes, for the judge's check that the search did not fail; None if none."""
        return None

    @final
    def objective_on(self, observation: Observation) -> Objective | None:
        """``objective`` with the same view that ``__call__`` gives."""
        return self.objective(observation.update, observation.knowledge.view(self.needs | self.uses))
