"""Runs the cells of a plan that have no record yet. Every draw depends on the cell's own name and the seed, never
on what ran before, so that an interrupted run ends with the same records as one that was left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel, deal
from gradleak.core.knowledge import Observation, find_threat, knowledge_of
from gradleak.core.record import Call as RecordedCall
from gradleak.core.record import Privacy, Record, Scenario
from gradleak.core.rng import derive
from gradleak.core.specs import Spec, build
from gradleak.core.stage import Run
from gradleak.core.update import Update
from gradleak.harness.judging import judge
from gradleak.harness.judging.flags import Evidence, Flag, compute_flags, cross_flags
from gradleak.harness.judging.prior_only import prior_only
from gradleak.harness.request import catalogue
from gradleak.harness.request.plan import Call, Cell, Plan, chain_name
from gradleak.harness.request.shares import share_spec
from gradleak.harness.request.sources import Others, Source
from gradleak.harness.running.cell import Outcome, finite, plain_scores, run_cell
from gradleak.harness.running.environment import environment_of
from gradleak.harness.running.store import RunFolder
from gradleak.mechanics.client.framing import Framing
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject
from gradleak.privacy.claim import claim


class Listener(Protocol):
    """Hears how far a run is."""

    def started(self, total: int, done: int) -> None: ...

    def cell_started(self, cell: Cell) -> Callable[[float, str], None] | None:
        """Returns what the attack reports its own progress to."""
        ...

    def cell_finished(self, record: Record) -> None: ...


class Silent:
    """Hears nothing."""

    def started(self, total: int, done: int) -> None: ...

    def cell_started(self, cell: Cell) -> Callable[[float, str], None] | None: ...

    def cell_finished(self, record: Record) -> None: ...


def run(plan: Plan, subject: Subject, source: Source, store: RunFolder, listener: Listener | None = None) -> None:
    """Runs every cell of ``plan`` that ``store`` has no record of.

    Raises:
        UsageError: if the data or the model turn out unusable, for instance by a gradient that is not finite.
    """
    listener = listener or Silent()
    todo = [cell for cell in plan.cells() if cell.id not in store.done]
    listener.started(plan.count(), plan.count() - len(todo))
    environment = environment_of(subject)
    for repeat, cells in groupby(todo, key=lambda cell: cell.repeat):
        setting = _draw(plan, subject, source, repeat, environment)
        for defense, group in groupby(cells, key=lambda cell: cell.defense):
            _run_defense(setting, defense, group, store, listener)
    _compare(store)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setting:
    """All that the cells of one repeat share: the private batch, its update, and what guessing would score."""

    plan: Plan
    subject: Subject
    trainer: ClientTrainer
    batch: Batch
    update: Update
    update_seconds: float
    decoys: tuple[Tensor, ...]
    baseline: dict[str, Any]
    repeat: int
    environment: dict[str, Any]

    def rng(self, *labels: object) -> torch.Generator:
        return derive(self.plan.seed, *labels, self.repeat)


def _draw(plan: Plan, subject: Subject, source: Source, repeat: int, environment: dict[str, Any]) -> _Setting:
    trainer = ClientTrainer(subject=subject, training=build(LocalTraining, plan.share))
    if find_threat(plan.threat).place == "during_training":
        trainer = trainer.one_step()
    batch, others = source.draw(derive(plan.seed, "batch", repeat))
    start = time.perf_counter()
    update = trainer.update(batch, derive(plan.seed, "training", repeat))
    seconds = time.perf_counter() - start
    decoys = others.records(subject, max_length=plan.max_length)
    return _Setting(
        plan=plan,
        subject=subject,
        trainer=trainer,
        batch=batch,
        update=update,
        update_seconds=seconds,
        decoys=decoys,
        baseline=_baseline(batch, subject, others, decoys, seed=plan.seed),
        repeat=repeat,
        environment=environment,
    )


def _baseline(
    batch: Batch, subject: Subject, others: Others, decoys: tuple[Tensor, ...], *, seed: int
) -> dict[str, Any]:
    """Scores of the best guess without the observation."""
    image = batch.modality == "image"
    guess = prior_only(
        batch.modality,
        batch_size=batch.size,
        seq_len=None if image else batch.inputs.shape[1],
        tokenizer=subject.tokenizer,
        corpus_texts=others.texts,
        shape=_picture_shape(batch) if image else None,
        corpus_images=others.images,
    )
    return plain_scores(judge.score(guess, batch, tokenizer=subject.tokenizer, decoys=decoys, seed=seed).scores)


def _picture_shape(batch: Batch) -> tuple[int, int, int]:
    _, channels, height, width = batch.inputs.shape
    return channels, height, width


def _run_defense(
    setting: _Setting, defense: tuple[Call, ...], cells: Iterable[Cell], store: RunFolder, listener: Listener
) -> None:
    stages = tuple(catalogue.make("defenses", call.spec()) for call in defense)
    channel = Channel(trainer=setting.trainer, stages=stages).seen_from(find_threat(setting.plan.threat).place)
    start = time.perf_counter()
    rng = setting.rng("defense", chain_name(defense))
    if channel.acts_on_updates_only():
        # One training serves all such columns, so that they differ by nothing but the defense.
        update, before = channel.defend(setting.update, rng), setting.update_seconds
    else:
        update, before = channel.observe(setting.batch, rng), 0.0
    seconds = before + time.perf_counter() - start
    observation = Observation(
        update=update, knowledge=knowledge_of(find_threat(setting.plan.threat), _facts(setting, channel))
    )
    for cell in cells:
        attack = catalogue.make("attacks", cell.attack.spec())
        outcome = run_cell(
            attack,
            observation,
            setting.batch,
            setting.subject,
            decoys=setting.decoys,
            clock=Clock(setting.plan.cell_seconds(), listener.cell_started(cell)),
            seed=setting.plan.seed,
            rng=setting.rng("attack", chain_name(defense), cell.attack.short()),
        )
        record = _record(setting, cell, observation, channel, outcome, seconds)
        store.append(record, outcome.tensors, outcome.metadata)
        listener.cell_finished(record)


def _facts(setting: _Setting, channel: Channel) -> dict[str, Any]:
    batch = setting.batch
    # The labels of a language-modeling loss are the text itself: no adversary is told them.
    labels = batch.labels if setting.subject.loss.labels_records else None
    trainer = channel.deployed()
    return {
        "subject": trainer.subject,
        "trainer": trainer,
        "stages": channel.stages,
        "batch_size": batch.size,
        "seq_len": batch.inputs.shape[1] if batch.modality == "text" else None,
        "framing": _framing(setting),
        "mask": batch.mask,
        "labels": labels,
        "candidates": _closed_world(setting),
    }


def _framing(setting: _Setting) -> Framing | None:
    """What the protocol's tokenizer puts around a text; None for records that were not made by it, such as own ids."""
    found = Framing.of(setting.subject.tokenizer)
    batch = setting.batch
    return found if found is not None and found.holds_in(batch.inputs, batch.mask) else None


def _closed_world(setting: _Setting) -> tuple[Tensor, ...] | None:
    """The private records among the decoys, in an order that says nothing; None where there are no decoys."""
    records = (*setting.batch.records(), *setting.decoys)
    order = torch.randperm(len(records), generator=setting.rng("candidates")).tolist()
    return tuple(records[place] for place in order) if setting.decoys else None


def _record(
    setting: _Setting, cell: Cell, observation: Observation, channel: Channel, outcome: Outcome, update_seconds: float
) -> Record:
    privacy = claim(channel.stages, run=_run_of(channel, setting.batch))
    return Record(
        cell=cell.id,
        scenario=_scenario(setting),
        attack=_call(cell.attack.spec()),
        defenses=[_call(call.spec()) for call in cell.defense],
        knowledge={
            "threat": setting.plan.threat,
            "place": find_threat(setting.plan.threat).place,
            "facts": list(observation.knowledge.names()),
            "read": sorted(_declared(cell) & set(observation.knowledge.names())),
        },
        seed=cell.seed,
        repeat=cell.repeat,
        status=outcome.status(),
        scores=plain_scores(outcome.judgement.scores),
        baseline=setting.baseline,
        flags=_flags(setting, cell, observation, outcome, privacy["epsilon"]),
        privacy=cast("Privacy", privacy),
        environment=setting.environment,
        seconds={"update": update_seconds, "attack": outcome.attack_seconds, "score": outcome.score_seconds},
    )


def _run_of(channel: Channel, batch: Batch) -> Run:
    """What the claim depends on besides the stages."""
    trainer = channel.deployed()
    sizes = tuple(part.size for part in deal(batch, channel.clients()))
    return Run(steps=trainer.training.local_steps(max(sizes)), tensors=len(trainer.names()), sizes=sizes)


def _call(spec: Spec) -> RecordedCall:
    return {"type": spec.type, "args": dict(spec.args)}


def _scenario(setting: _Setting) -> Scenario:
    plan, subject = setting.plan, setting.subject
    return {
        "model": subject.name,
        "modality": subject.modality,
        "loss": subject.loss.name,
        "share": _call(share_spec(setting.trainer.training)),
        "batch_size": plan.batch_size,
        "data": {"name": plan.data.name, "fingerprint": plan.data.fingerprint, "size": plan.data.size},
        "max_length": plan.max_length,
        "parameters": sum(parameter.numel() for parameter in subject.module.parameters()),
        "tokenizer": None if subject.tokenizer is None else subject.tokenizer.name,
    }


def _flags(
    setting: _Setting, cell: Cell, observation: Observation, outcome: Outcome, epsilon: float | None
) -> list[str]:
    found = outcome.reconstruction
    return compute_flags(
        Evidence(
            status=found.status,
            objective=finite(found.objective),
            objective_at_truth=finite(outcome.objective_at_truth),
            objective_at_start=finite(found.trace[0][1]) if found.trace else None,
            exact=outcome.judgement.exact,
            stages=tuple(stage.type for stage in cell.defense),
            adapted=found.adapted,
            known=frozenset(observation.knowledge.names()),
            declared=_declared(cell),
            update_norm=observation.update.norm(),
            number_format=setting.trainer.training.dtype,
            epsilon=epsilon,
            scores={name: score.value for name, score in outcome.judgement.scores.items()},
        )
    )


def _declared(cell: Cell) -> frozenset[str]:
    attack = catalogue.find("attacks", cell.attack.type)
    return attack.needs | attack.uses


def _compare(store: RunFolder) -> None:
    """Adds the flags that follow from comparing cells; they need every record, so they come last."""
    order = [flag.name for flag in Flag]
    extra = cross_flags(store.records)
    records = [
        replace(record, flags=sorted({*record.flags, *extra[record.cell]}, key=order.index)) for record in store.records
    ]
    if records != store.records:
        store.replace(records)
