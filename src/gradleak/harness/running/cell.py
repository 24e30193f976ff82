"""One cell of an audit, from an observation to a record: the attack proposes, the judge scores, the record keeps
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

from gradleak.core.attack import Attack, Candidate, Clock, Reconstruction, Status
from gradleak.core.batch import Batch, Modality
from gradleak.core.knowledge import Observation
from gradleak.core.metric import Comparison, Score
from gradleak.core.record import Proposed
from gradleak.core.record import Score as RecordedScore
from gradleak.core.record import Status as RecordedStatus
from gradleak.harness.judging import judge
from gradleak.models import Subject, Tokenizer

_SPECIAL = "[·]"
"""How a token that structures the text is written among the recovered ones."""


_WORST_TENSORS = 5


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

    def status(self) -> RecordedStatus:
        """The record's ``status``."""
        found = self.reconstruction
        return {
            "name": found.status.name,
            "sentence": found.status.value,
            "message": found.message,
            "objective": finite(found.objective),
            "objective_at_truth": finite(self.objective_at_truth),
            "certificate": finite(found.certificate),
            "worst_tensors": worst_tensors(found),
            "proposed": self._proposed(),
            "confidence": claimed(found),
            "adapted": list(found.adapted),
            "trace": [[iteration, value] for iteration, value in found.trace if math.isfinite(value)],
            "statistics": {name: value for name, value in found.statistics.items() if math.isfinite(value)},
        }

    def _proposed(self) -> Proposed | None:
        """False positives; None for an attack that came to no result."""
        if self.reconstruction.status in judge.FAILED:
            return None
        account = self.judgement.account
        return {"proposed": account.proposed, "wrong": account.wrong, "wrong_records": account.wrong_records}


def worst_tensors(found: Reconstruction) -> list[tuple[str, float]]:
    """The tensors that the recomputed update misses most, with their relative errors."""
    finite_ones = [(name, error) for name, error in found.tensor_errors.items() if math.isfinite(error)]
    return sorted(finite_ones, key=lambda pair: (-pair[1], pair[0]))[:_WORST_TENSORS]


def claimed(found: Reconstruction) -> dict[str, float] | None:
    """What an attack claims of its own tokens: how many there are, and how many of them it expects to be wrong."""
    if not found.confidence:
        return None
    sure = torch.cat([each.double().flatten() for each in found.confidence])
    return {
        "tokens": float(sure.numel()),
        "expected_wrong": float((1 - sure).sum()),
        "least": float(sure.min()) if sure.numel() else 1.0,
    }


def run_cell(
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
    return Candidate(inputs=inputs.detach(), labels=subject.loss.targets(batch.labels, subject.classes))


def evidence(comparison: Comparison, tokenizer: Tokenizer | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The matched pairs for the run folder, and what the attack claims of its tokens.

    Texts lose the positions where the truth holds a special token, on both sides; what was proposed there comes last.
    So the tokens that agree in their place are exactly those that ``token_accuracy`` counts.
    """
    metadata = {"ordered": str(comparison.ordered).lower(), "modality": "text" if tokenizer is not None else "image"}
    tensors: dict[str, Tensor] = {}
    claims: dict[str, Tensor] = {}
    for i, (truth, guess) in enumerate(comparison.aligned):
        if tokenizer is None:
            tensors[f"truth.{i}"] = truth
            shown = guess
        else:
            tensors[f"truth.{i}"] = truth[_is_content(truth, comparison.special_ids)]
            order = None if guess is None else _order(truth, guess, comparison.special_ids, ordered=comparison.ordered)
            shown = None if guess is None else guess[order]
            sure = comparison.confidence[i] if comparison.confidence else None
            if sure is not None:
                claims[f"confidence.{i}"] = sure[order].float()
        if shown is not None:
            tensors[f"guess.{i}"] = shown
    tensors |= {f"extra.{i}": record for i, record in enumerate(comparison.extras)}
    if tokenizer is not None:
        for key, ids in tensors.items():
            metadata[f"pieces.{key}"] = json.dumps(_pieces(ids, tokenizer), ensure_ascii=False)
    return tensors | claims, metadata


def _is_content(ids: Tensor, special: frozenset[int]) -> Tensor:
    return ~torch.isin(ids, torch.tensor(sorted(special), dtype=ids.dtype))


def _order(truth: Tensor, guess: Tensor, special: frozenset[int], *, ordered: bool) -> Tensor:
    """The places of a guess that are kept: those beside content of the truth, then content that stands elsewhere."""
    content = _is_content(guess, special)
    if not ordered:
        return content.nonzero().flatten()
    places = _is_content(truth, special).nonzero().flatten()
    beside = places[places < len(guess)]
    elsewhere = content.clone()
    elsewhere[beside] = False
    return torch.cat((beside, elsewhere.nonzero().flatten()))


def _pieces(ids: Tensor, tokenizer: Tokenizer) -> list[str]:
    return [_SPECIAL if int(token) in tokenizer.special_ids else tokenizer.decode(token.reshape(1)) for token in ids]


def plain_scores(scores: Mapping[str, Score]) -> dict[str, RecordedScore]:
    """As records hold them. JSON has no infinity: an unbounded score keeps its largest finite stand-in."""
    return {
        name: {
            "value": _bounded(score.value),
            "low": _bounded(score.low),
            "high": _bounded(score.high),
            "chance": None if score.chance is None else _bounded(score.chance),
            "n": score.n,
            "higher_is_better": score.higher_is_better,
        }
        for name, score in scores.items()
    }


def _bounded(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else math.copysign(1e300, value)


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
