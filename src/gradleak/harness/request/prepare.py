"""Everything that can be wrong with a request is found before any work: specs, names, files, data, model, sizes,
in this order, the cheap checks first. Must not run an attack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gradleak.core.batch import Modality
from gradleak.core.channel import Channel, check_order
from gradleak.core.errors import DataError
from gradleak.core.knowledge import find_threat
from gradleak.core.loss import SQUARED, find_loss
from gradleak.core.rng import derive
from gradleak.core.specs import parse_chain, spec_of
from gradleak.core.stage import TrainingStage
from gradleak.harness.request import catalogue, defaults
from gradleak.harness.request.data import Pool, load_pool, matrix_pool
from gradleak.harness.request.fingerprint import fingerprint
from gradleak.harness.request.plan import Call, DataSource, Plan, chain_name, distinct
from gradleak.harness.request.shares import adapted, parse_share
from gradleak.harness.request.sources import PoolSource, Source
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a user asks for, as it is typed; None is the default."""

    model: str | None = None
    data: Path | None = None
    text_column: str | None = None
    label_column: str | None = None
    batch_size: int | None = None
    max_length: int | None = None
    loss: str | None = None
    share: str | None = None
    attacks: str | None = None
    defenses: tuple[str, ...] | None = None
    threat: str | None = None
    seed: int = 0
    repeats: int = defaults.REPEATS
    budget_seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    first_blocks: int | None = None
    default_attacks: Mapping[Modality, str] = field(default_factory=lambda: defaults.ATTACKS)
    """Attacks where ``attacks`` names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A plan that is known to be sound, with the model and the data it speaks of."""

    plan: Plan
    subject: Subject
    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Methods:
    """The parts of a request that are specs, read and built."""

    training: LocalTraining
    threat: str
    attacks: tuple[Call, ...] | None
    defenses: tuple[tuple[Call, ...], ...]


def prepare(request: Request) -> Prepared:
    """Reads, checks and loads what ``request`` asks for.

    Raises:
        UsageError: with cause and remedy, for anything that would make the audit fail later.
    """
    if request.loss is not None:
        find_loss(request.loss)
    methods = read_methods(request)
    pool, subject = load(request)
    subject = adapted(subject, methods.training, seed=request.seed)
    batch_size = request.batch_size or min(defaults.BATCH_SIZE, pool.size)
    if batch_size > pool.size:
        raise DataError(
            f"--batch-size {batch_size} is larger than the data: {pool.name} holds {pool.size} records. "
            f"Give --batch-size {pool.size} or less, or more data."
        )
    max_length = request.max_length or defaults.MAX_LENGTH
    source = PoolSource(pool=pool, subject=subject, batch_size=batch_size, max_length=max_length)
    # A draw is cheap and finds what does not fit: labels, lengths, modality.
    source.draw(derive(request.seed, "batch", 0))
    data = DataSource(
        path=None if request.data is None else str(request.data),
        text_column=request.text_column,
        label_column=request.label_column,
        name=pool.name,
        fingerprint=pool.fingerprint,
        size=pool.size,
    )
    return Prepared(
        plan=make_plan(request, methods, subject, data, batch_size=batch_size, max_length=max_length),
        subject=subject,
        source=source,
    )


def read_methods(request: Request) -> Methods:
    """Builds every spec of the request once, so that a mistake in any of them shows now.

    Raises:
        SpecError, UnknownNameError: as the catalogue and the methods do.
    """
    training = parse_share(request.share or defaults.SHARE)
    threat = find_threat(request.threat or defaults.THREAT)
    attacks = None if request.attacks is None else attack_calls(request.attacks)
    demonstration = request.model is None and request.data is None
    texts = request.defenses if request.defenses is not None else (defaults.DEFENSES if demonstration else ())
    chains = [read_chain(text) for text in texts if text.strip() != "none"]
    defenses = ((), *chains)
    distinct("defense", tuple(chain_name(chain) for chain in chains))
    for stage in (stage for text in texts for stage in catalogue.make_stages(text)):
        if isinstance(stage, TrainingStage):
            training.check_stage(stage)
    return Methods(training=training, threat=threat.name, attacks=attacks, defenses=defenses)


def attack_calls(text: str) -> tuple[Call, ...]:
    """Attacks with all their settings. Raises ``SpecError`` or ``UnknownNameError``."""
    calls = tuple(Call.of(spec_of(attack)) for attack in catalogue.make_attacks(text))
    distinct("attack", tuple(call.short() for call in calls))
    return calls


def read_chain(text: str) -> tuple[Call, ...]:
    """A defense with all its settings; binding and order are checked, to see that its stages fit each other."""
    parse_chain(text)
    stages = catalogue.make_stages(text)
    check_order(stages)
    return tuple(Call.of(spec_of(stage)) for stage in stages)


def make_plan(
    request: Request, methods: Methods, subject: Subject, data: DataSource, *, batch_size: int, max_length: int
) -> Plan:
    """The plan of a checked request. Raises ``UsageError`` if nothing of the model is trained or a stage does not fit."""
    trainer = ClientTrainer(subject=subject, training=methods.training)
    for chain in methods.defenses:
        # A stage that this model or this batch cannot take is refused now, not after an hour of other cells.
        channel = Channel(trainer=trainer, stages=tuple(catalogue.make("defenses", call.spec()) for call in chain))
        channel.deployed().names()
        if channel.clients() > batch_size:
            raise DataError(
                f"{chain_name(chain)} deals a batch of {batch_size} records out to {channel.clients()} clients. "
                f"Give --batch-size {channel.clients()} or more."
            )
    plan = Plan(
        model=request.model or defaults.MODEL,
        model_fingerprint=fingerprint(_weights(subject.module)),
        settings=dict(request.settings),
        first_blocks=request.first_blocks,
        loss=subject.loss.name,
        classes=subject.classes,
        data=data,
        batch_size=batch_size,
        max_length=max_length,
        share=dataclasses.asdict(methods.training),
        threat=methods.threat,
        attacks=methods.attacks or attack_calls(request.default_attacks[subject.modality]),
        defenses=methods.defenses,
        seed=request.seed,
        repeats=request.repeats,
        budget_seconds=request.budget_seconds,
        available={kind: catalogue.names(kind) for kind in catalogue.KINDS},
    )
    return plan.model_copy(update={"command": plan.command_line()})


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        yield (name if parameter.requires_grad else f"{name} (frozen)"), parameter


def load(request: Request) -> tuple[Pool, Subject]:
    """Data before model, because it is cheaper to be wrong about; images need the model's size, so they come after."""
    model = request.model or defaults.MODEL
    if request.data is not None and not request.data.exists():
        raise DataError(f"There is no file {request.data}. Check the path given to --data.")
    if request.data is not None and request.data.is_dir():
        folders = [entry for entry in request.data.iterdir() if entry.is_dir()]
        subject = _subject(model, request, classes=max(2, len(folders)))
        _expect(subject, "image", request)
        channels, height, _ = subject.pixel_shape
        return load_pool(request.data, image_size=height, channels=channels), subject
    pool = load_pool(request.data, text_column=request.text_column, label_column=request.label_column)
    subject = _subject(model, request, classes=max(2, len(pool.label_names or ())))
    if subject.loss == SQUARED and request.data is None:
        return matrix_pool(subject, seed=request.seed), subject
    _expect(subject, "text", request)
    return pool, subject


def _subject(model: str, request: Request, *, classes: int) -> Subject:
    return load_subject(
        model,
        loss=request.loss,
        classes=classes,
        settings=request.settings,
        seed=request.seed,
        first_blocks=request.first_blocks,
    )


def _expect(subject: Subject, modality: Modality, request: Request) -> None:
    if subject.modality == modality:
        return
    wanted = "a folder of images" if subject.modality == "image" else "a .txt, .csv or .jsonl file"
    given = "the shipped messages" if request.data is None else str(request.data)
    raise DataError(f"{subject.name} takes {subject.modality}s, and {given} hold {modality}s. Give --data {wanted}.")
