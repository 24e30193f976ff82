"""The map from a private batch to what the adversary sees, as one immutable object. "No defense" is no stages.

batch ─ data stages ─ local training of the deployed model ─ update stages ─┐
(the same on every other client) ────────────────────────────────────────── protocol ─ update stages ─ adversary
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch

from gradleak.core.batch import Batch, TrainingData
from gradleak.core.errors import DataError, SpecError
from gradleak.core.knowledge import Place
from gradleak.core.specs import Spec, name_of, spec_of
from gradleak.core.stage import (
    Client,
    ClientStage,
    DataStage,
    ModelStage,
    ProtocolStage,
    Stage,
    State,
    TrainingStage,
    UpdateStage,
)
from gradleak.core.update import Update


class Trainer(Protocol):
    """Local training: what a client computes from its batch before any defense."""

    def prepare(self, batch: Batch) -> TrainingData: ...

    def train(
        self, data: TrainingData, rng: torch.Generator, *, stage: TrainingStage | None = None, round: int = 0
    ) -> Update: ...

    def deploy(self, stages: tuple[ModelStage, ...]) -> Self:
        """The same training of the model as these stages change it."""
        ...

    def one_step(self) -> Self:
        """The gradient of one step on the whole batch, in the place of the local training."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What one client keeps between rounds. Belongs to the client, never to a stage.

    Attributes:
        rounds: releases made so far; states: by position of the stage in the channel.
    """

    rounds: int = 0
    states: tuple[State, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """Local training and stages, in the order in which they act: data and model, training, update, protocol.

    Raises:
        SpecError: if a stage stands behind one that acts later, twice where there is room for one, or lacks what it
            must inherit from an earlier one.
    """

    trainer: Trainer
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        check_order(self.stages)
        bound: list[Stage] = []
        for stage in self.stages:
            bound.append(stage.bind(tuple(bound)))
        object.__setattr__(self, "stages", tuple(bound))

    def deployed(self) -> Any:
        """The local training of the model as it is deployed: what clients and adversaries hold."""
        changes = tuple(stage for stage in self.stages if isinstance(stage, ModelStage))
        return self.trainer.deploy(changes) if changes else self.trainer

    def seen_from(self, place: Place) -> Channel:
        """The part of the channel that lies before an adversary at this place, as a channel of its own.

        Inside the client there is no release: stages on the update and the protocol have not acted yet, and the batch is that
        client's. What acts on the data, the model and each local step has.
        """
        if place == "server":
            return self
        local = tuple(stage for stage in self.stages if isinstance(stage, (DataStage, ModelStage, TrainingStage)))
        trainer = self.trainer.one_step() if place == "during_training" else self.trainer
        return Channel(trainer=trainer, stages=local)

    def clients(self) -> int:
        """Over how many clients a private batch is dealt out; 1 without a protocol stage."""
        return next((stage.clients() for stage in self.stages if isinstance(stage, ProtocolStage)), 1)

    def acts_on_updates_only(self) -> bool:
        """True if one plain update serves: no stage needs the data, the model or the training."""
        return all(isinstance(stage, UpdateStage) for stage in self.stages)

    def observe(self, batch: Batch, rng: torch.Generator) -> Update:
        """Runs the channel once, in its first round, with all draws from ``rng``.

        Raises:
            DataError: if a protocol stage asks for more clients than there are records.
        """
        parts = deal(batch, self.clients())
        trainer = self.deployed()
        updates = tuple(self._run(trainer, part, Memory(), rng)[0] for part in parts)
        return self.join(updates, tuple(part.size for part in parts), rng)

    def client(self, batch: Batch, memory: Memory, rng: torch.Generator) -> tuple[Update, Memory]:
        """One round of one client, up to what leaves it. Thread ``memory`` through the rounds; begin with ``Memory()``.

        With ``join`` this is all that a federated simulation needs: one channel, one memory per client.
        """
        return self._run(self.deployed(), batch, memory, rng)

    def join(self, updates: tuple[Update, ...], sizes: tuple[int, ...], rng: torch.Generator) -> Update:
        """From what leaves the clients to what the adversary sees. ``sizes`` are their numbers of records."""
        protocol = next((stage for stage in self.stages if isinstance(stage, ProtocolStage)), None)
        if protocol is None and len(updates) == 1:
            return updates[0]
        if protocol is None:
            raise SpecError(f"{len(updates)} updates need a protocol that joins them, and this channel has none.")
        update = protocol.join(updates, sizes, rng)
        for stage in self.stages[self.stages.index(protocol) + 1 :]:
            if isinstance(stage, UpdateStage):
                update = stage.apply(update, rng)
        return update

    def defend(self, update: Update, rng: torch.Generator) -> Update:
        """Applies the stages to an update that is already there; the trainer's result can serve several channels.

        Raises:
            SpecError: if a stage acts on anything but the update; then ``observe`` must run.
        """
        for stage in self.stages:
            if not isinstance(stage, UpdateStage):
                raise SpecError(f"{name_of(stage)} needs the private batch, not only its update. Call observe.")
            update = stage.apply(update, rng)
        return update

    def specs(self) -> tuple[Spec, ...]:
        return tuple(spec_of(stage) for stage in self.stages)

    def _run(self, trainer: Any, batch: Batch, memory: Memory, rng: torch.Generator) -> tuple[Update, Memory]:
        client = Client(batch=batch, data=trainer.prepare(batch), trainer=trainer, round=memory.rounds)
        for stage in self.stages:
            if isinstance(stage, DataStage):
                client = replace(client, data=stage.apply(client, rng))
        training = next((stage for stage in self.stages if isinstance(stage, TrainingStage)), None)
        update = trainer.train(client.data, rng, stage=training, round=memory.rounds)
        states: list[State] = list(memory.states) or [{} for _ in self.stages]
        for place, stage in enumerate(self.stages):
            if isinstance(stage, ProtocolStage):
                break
            if isinstance(stage, UpdateStage):
                update = stage.apply(update, rng)
            elif isinstance(stage, ClientStage):
                update, states[place] = stage.apply(update, replace(client, state=states[place]), rng)
        return update, Memory(rounds=memory.rounds + 1, states=tuple(states))


_PLACES: tuple[tuple[type[Stage], int], ...] = (
    (DataStage, 0),
    (ModelStage, 0),
    (TrainingStage, 1),
    (ClientStage, 2),
    (UpdateStage, 2),
    (ProtocolStage, 3),
)


def check_order(stages: Iterable[Stage]) -> None:
    """Raises ``SpecError`` unless every stage stands where it acts.

    Stages that see only the update may also follow the protocol; there is room for one training and one protocol stage.
    """
    reached, last = 0, "nothing"
    for stage in stages:
        place = next(number for kind, number in _PLACES if isinstance(stage, kind))
        alone = place in (1, 3)
        if (place < reached and not (reached == 3 and isinstance(stage, UpdateStage))) or (place == reached and alone):
            raise SpecError(
                f"{name_of(stage)} stands behind {last}. Stages are written in the order in which they act: data and model, "
                "one of local training, update, one protocol; after it only stages that act on an update alone."
            )
        reached, last = max(reached, place), name_of(stage)


def deal(batch: Batch, clients: int) -> tuple[Batch, ...]:
    """The batch dealt out to clients in order, the first ones taking one record more where it does not divide.

    Raises:
        DataError: if there are fewer records than clients.
    """
    if clients == 1:
        return (batch,)
    if batch.size < clients:
        raise DataError(
            f"{clients} clients need at least one record each, and the batch holds {batch.size}. Raise --batch-size."
        )
    parts = zip(*(tensor.tensor_split(clients) for tensor in (batch.inputs, batch.mask, batch.labels)), strict=True)
    return tuple(Batch(inputs=inputs, mask=mask, labels=labels) for inputs, mask, labels in parts)
