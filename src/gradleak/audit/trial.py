"""Why: one cell of an audit, from an observation to a record: the attack proposes, the judge scores, the record keeps
what a reader needs to believe or doubt it. Must not know how cells are ordered or stored.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradleak.audit import judge
from gradleak.core.attack import Attack, Candidate, Clock, Reconstruction, Status
from gradleak.core.batch import Batch, Modality, soft_labels
from gradleak.core.metric import Comparison, Score
from gradleak.core.observation import Observation
from gradleak.models import Subject, Tokenizer

_SPECIAL = "[·]"
"""How a token that structures the text is written among the recovered ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a cell came to, ready to be put into a record.

    Attributes:
        tensors, metadata: the evidence, as the run folder keeps it.
    """

    reconstruction: Reconstruction
    objective_at_truth: float | None
    judgement: judge.Judgement
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    attack_seconds: float
    score_seconds: float

    def status(self) -> dict[str, Any]:
        """The record's ``status``."""
        found = self.reconstruction
        return {
            "name": found.status.name,
            "sentence": found.status.value,
            "message": found.message,
            "objective": finite(found.objective),
            "objective_at_truth": finite(self.objective_at_truth),
            "certificate": finite(found.certificate),
            "adapted": list(found.adapted),
            "trace": [[iteration, value] for iteration, value in found.trace if math.isfinite(value)],
            "statistics": {name: value for name, value in found.statistics.items() if math.isfinite(value)},
        }


def attempt(
    attack: Attack,
    observation: Observation,
    batch: Batch,
    subject: Subject,
    *,
    decoys: tuple[Tensor, ...],
    clock: Clock,
    seed: int,
    rng: torch.Generator,
) -> Outcome:
    """Runs one attack on one observation, then judges it. The attack is given the observation and ``rng``, nothing else."""
    start = time.perf_counter()
    reconstruction = propose(attack, observation, batch.modality, rng=rng, clock=clock)
    attacked = time.perf_counter()
    judgement = judge.score(reconstruction, batch, tokenizer=subject.tokenizer, decoys=decoys, seed=seed)
    at_truth = _objective_at_truth(attack, observation, reconstruction, batch, subject)
    tensors, metadata = evidence(judgement.comparison, subject.tokenizer)
    return Outcome(
        reconstruction=reconstruction,
        objective_at_truth=at_truth,
        judgement=judgement,
        tensors=tensors,
        metadata=metadata,
        attack_seconds=attacked - start,
        score_seconds=time.perf_counter() - attacked,
    )


def propose(
    attack: Attack, observation: Observation, modality: Modality, *, rng: torch.Generator, clock: Clock
) -> Reconstruction:
    """Runs the attack if it is one for this kind of records."""
    if modality not in attack.modalities:
        takes = " and ".join(sorted(attack.modalities))
        return Reconstruction(
            status=Status.NOT_APPLICABLE,
            message=f"The attack recovers {takes} records, and these are {modality} records.",
        )
    return attack(observation, rng=rng, clock=clock)


def _objective_at_truth(
    attack: Attack, observation: Observation, found: Reconstruction, batch: Batch, subject: Subject
) -> float | None:
    """What the attack's own objective is at the private data; None if the attack has none or did not run."""
    if found.status is Status.NOT_APPLICABLE:
        return None
    objective = attack.objective_on(observation)
    return None if objective is None else objective(true_candidate(batch, subject))


def true_candidate(batch: Batch, subject: Subject) -> Candidate:
    """The private batch as a point of a search space: embeddings or pixels, and one-hot labels."""
    with torch.no_grad():
        inputs = batch.inputs if batch.modality == "image" else subject.embed(batch.inputs)
    return Candidate(inputs=inputs.detach(), labels=soft_labels(batch.labels, subject.classes))


def evidence(comparison: Comparison, tokenizer: Tokenizer | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The matched pairs for the run folder.

    Texts lose the positions where the truth holds a special token, on both sides; what was proposed there comes last.
    So the tokens that agree in their place are exactly those that ``token_accuracy`` counts.
    """
    metadata = {"ordered": str(comparison.ordered).lower(), "modality": "text" if tokenizer is not None else "image"}
    tensors: dict[str, Tensor] = {}
    for i, (truth, guess) in enumerate(comparison.aligned):
        shown = (truth, guess)
        if tokenizer is not None:
            shown = _without_special(truth, guess, comparison.special_ids, ordered=comparison.ordered)
        tensors[f"truth.{i}"] = shown[0]
        if shown[1] is not None:
            tensors[f"guess.{i}"] = shown[1]
    tensors |= {f"extra.{i}": record for i, record in enumerate(comparison.extras)}
    if tokenizer is not None:
        for key, ids in tensors.items():
            metadata[f"pieces.{key}"] = json.dumps(_pieces(ids, tokenizer), ensure_ascii=False)
    return tensors, metadata


def _without_special(
    truth: Tensor, guess: Tensor | None, special: frozenset[int], *, ordered: bool
) -> tuple[Tensor, Tensor | None]:
    marks = torch.tensor(sorted(special), dtype=truth.dtype)
    content = ~torch.isin(truth, marks)
    if guess is None:
        return truth[content], None
    if not ordered:
        return truth[content], guess[~torch.isin(guess, marks)]
    places = content.nonzero().flatten()
    beside = guess[places[places < len(guess)]]
    elsewhere = torch.ones(len(guess), dtype=torch.bool)
    elsewhere[places[places < len(guess)]] = False
    rest = guess[elsewhere]
    return truth[content], torch.cat((beside, rest[~torch.isin(rest, marks)]))


def _pieces(ids: Tensor, tokenizer: Tokenizer) -> list[str]:
    return [_SPECIAL if int(token) in tokenizer.special_ids else tokenizer.decode(token.reshape(1)) for token in ids]


def plain_scores(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """As records hold them. JSON has no infinity: an unbounded score keeps its largest finite stand-in."""
    return {name: {key: _bounded(value) for key, value in score.to_plain().items()} for name, score in scores.items()}


def _bounded(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else math.copysign(1e300, value)


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
