"""From the defense that a user names to how far it moves the reconstruction: the defense is applied to the update of one batch, and
what it changed is the perturbation whose influence theory predicts. Must not run an attack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.errors import NotApplicableError
from gradleak.core.rng import derive
from gradleak.core.specs import name_of
from gradleak.core.stage import DataStage, ModelStage, ProtocolStage, Stage, TrainingStage
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import update_jacobian
from gradleak.models import Subject
from gradleak.theory.error.influence import influence

_WORK = 1e10
"""Weights times tokens times products: about a minute of one core for the dense products of a whole update."""
_FEWEST, _MOST = 8, 1000
"""Conjugate gradient steps: below the first a model is refused, the second is more than small models need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InfluenceForecast:
    """How far one perturbation of the update moves what the best first-order attacker recovers.

    Lengths are root mean squares per feature of a real token, in standard deviations of an embedding: 1 is how far a random
    embedding is from the mean one.

    Attributes:
        perturbation: the defense, as it was named.
        relative: ‖δ‖ / ‖update‖.
        at_least: from ‖Jᵀδ‖² / ‖JᵀJ Jᵀδ‖, which needs no linear solve and no prior.
        published: the weaker ‖Jᵀδ‖ / λ_max(JᵀJ).
        moved: of the attacker who also holds a Gaussian prior around the truth, (JᵀJ + ε)⁻¹ Jᵀδ.
        per_record: the same of every record.
        residual: of the solve, relative; steps: of conjugate gradients. A solve that ends early is too short, never too long.
    """

    perturbation: str
    relative: float
    at_least: float
    published: float
    moved: float
    per_record: tuple[float, ...]
    residual: float
    steps: int


def read_perturbation(text: str, *, training: LocalTraining) -> tuple[Stage, ...]:
    """The stages of a defense or a chain, as ``gradleak audit --defense`` takes it.

    Raises:
        NotApplicableError: for a defense that changes the data, the model or joins clients.
        UsageError: if the text names no defense or does not fit the training.
    """
    stages = catalogue.make_stages(text)
    for stage in stages:
        if isinstance(stage, DataStage | ModelStage | ProtocolStage):
            raise NotApplicableError(
                f"{name_of(stage)} changes the data, the model or the clients, and an influence is that of a change of the update. "
                "Name a defense that acts on the update or on local training, such as gaussian or prune; measure this one with "
                "`gradleak audit`."
            )
        if isinstance(stage, TrainingStage):
            training.check_stage(stage)
    return stages


def predict_influence(
    subject: Subject, batch: Batch, perturbation: str, *, training: LocalTraining, seed: int
) -> InfluenceForecast:
    """The inversion influence of a defense on one batch, labels known and the token table's own gradient left out.

    Args:
        perturbation: as ``read_perturbation`` takes it.

    Raises:
        NotApplicableError: for a model too large, and as ``read_perturbation``.
        UsageError: as ``read_perturbation``.
    """
    stages = read_perturbation(perturbation, training=training)
    trainer = ClientTrainer(subject=subject, training=training)
    table = subject.anatomy.token_embedding
    names = tuple(name for name in trainer.names() if name != table)
    steps = _affordable(trainer, names, batch)
    clean = Channel(trainer=trainer).observe(batch, derive(seed, "influence"))
    released = Channel(trainer=trainer, stages=stages).observe(batch, derive(seed, "influence"))
    change = {name: released[name] - clean[name] for name in names}
    x = subject.embed(batch.inputs).detach()
    targets = subject.loss.targets(batch.labels, subject.classes).to(x.dtype)
    jacobian = update_jacobian(trainer, x, targets, batch.mask, names=names)
    tau = _embedding_std(subject)
    energy = math.fsum(float(part.double().square().sum()) for part in change.values())
    entries = sum(part.numel() for part in change.values())
    shift = influence(jacobian, change, regularization=energy / entries / tau**2, tolerance=1e-6, iterations=steps)
    norm = math.sqrt(math.fsum(float(clean[name].double().square().sum()) for name in names))
    real = batch.mask.sum(dim=1).clamp(min=1)
    features = x.shape[-1]
    unit = tau * math.sqrt(int(batch.mask.sum()) * features)
    return InfluenceForecast(
        perturbation=perturbation,
        relative=math.sqrt(energy) / norm if norm > 0 else 0.0,
        at_least=shift.lower_by_quotient / unit,
        published=shift.lower / unit,
        moved=shift.norm / unit,
        per_record=tuple(
            length / (tau * math.sqrt(int(count) * features))
            for length, count in zip(shift.per_record, real, strict=True)
        ),
        residual=shift.residual,
        steps=shift.iterations,
    )


def _affordable(trainer: ClientTrainer, names: tuple[str, ...], batch: Batch) -> int:
    """Conjugate gradient steps that the time of a prediction allows."""
    weights = sum(trainer.subject.module.get_parameter(name).numel() for name in names)
    local = max(1, trainer.training.local_steps(batch.size)) if trainer.training.share == "delta" else 1
    steps = int(_WORK / (weights * int(batch.mask.sum()) * local))
    if steps < _FEWEST:
        raise NotApplicableError(
            f"{weights:,} weights and {int(batch.mask.sum())} tokens allow {steps} products in the time of a prediction; "
            f"{_FEWEST} are needed. Ask for fewer tokens (--batch-size, --seq-len) or a smaller model of the same type."
        )
    return min(_MOST, steps)


def _embedding_std(subject: Subject) -> float:
    table: Any = subject.anatomy.token_embedding
    rows = subject.parameters()[table].detach().double()
    return float(rows.var(0).mean().sqrt())
