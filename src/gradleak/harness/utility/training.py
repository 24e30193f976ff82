"""A defense that stops every attack by stopping the training is no defense. Trains a tiny model through a channel,
with and without its stages, from the same seeds. Must not know any defense: the channel is the only door.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel, Memory
from gradleak.core.errors import DataError, GradleakError, SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import ModelStage
from gradleak.core.update import Update
from gradleak.harness.judging.intervals import CONFIDENCE
from gradleak.harness.request import catalogue
from gradleak.harness.request.plan import Call, chain_name
from gradleak.harness.request.shares import adapted
from gradleak.harness.utility.memory import PeakMemory
from gradleak.harness.utility.tasks import Task, make_task
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining

_BETAS, _EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A federated training run.

    Attributes:
        clients: who send an update in every round; a protocol stage that fixes their number has the last word.
        batch_size: records that a client draws for a round, with replacement between rounds.
        lr: of the server's step.
        seeds: repetitions; each has its own weights, split and draws.

    Raises:
        SpecError: for a value outside its range.
    """

    rounds: int = 240
    clients: int = 4
    batch_size: int = 16
    lr: float = 0.01
    seeds: int = 5

    def __post_init__(self) -> None:
        for name in ("rounds", "clients", "batch_size", "seeds"):
            if getattr(self, name) < 1:
                raise SpecError(f"The utility run needs {name} of at least 1, got {getattr(self, name)}.")
        if not 0 < self.lr < math.inf:
            raise SpecError(f"The utility run needs a positive, finite learning rate, got {self.lr}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What one training run came to.

    Attributes:
        accuracy: on held-out records, after the last round; None if the defense does not apply.
        losses: mean training loss of the clients' batches before each round's step.
        draws: hash of the records every client trained on: equal with and without a defense.
        cpu_seconds: processor time of the rounds, evaluation left out.
        kept_bytes: what all clients keep for the defense between rounds.
        released: share of the released entries that are not zero, in the last round.
        reason: why the defense does not apply here; empty if it does.
        peak_bytes: most that one client's tensors held at one moment of its first round.
    """

    task: str
    defense: str
    seed: int
    accuracy: float | None
    chance: float
    losses: tuple[float, ...]
    draws: str
    cpu_seconds: float
    kept_bytes: int
    released: float | None
    reason: str = ""
    peak_bytes: int = 0


def train(
    task_name: str, chain: Sequence[Call], seed: int, schedule: Schedule, training: LocalTraining | None = None
) -> Trained:
    """One federated run through a chain of stages.

    In every round each client draws a batch and sends what ``Channel.client`` makes of it; the server joins the updates
    (``Channel.join``, or their mean weighted by records) and takes a step of Adam along the result. Adam, because its
    step does not depend on the update's scale: a defense that only rescales is not charged for a learning rate that no
    longer fits. No knob of the server is tuned for any defense.

    Args:
        training: what a client computes; a gradient (FedSGD) if None, a delta is FedAvg with a server optimizer.

    Returns:
        With ``reason`` set if the model or the batch has no place for a stage, or the training diverged.

    Source: McMahan et al., arXiv 1602.05629 (FedAvg, FedSGD); Reddi et al., arXiv 2003.00295 (Adam on the server).
    """
    task, training = make_task(task_name, seed), training or LocalTraining()
    stages = tuple(catalogue.make("defenses", call.spec()) for call in chain)
    try:
        trainer = ClientTrainer(subject=adapted(task.subject, training, seed=seed), training=training)
        run = _Run(task, Channel(trainer=trainer, stages=stages), schedule, seed)
        for number in range(schedule.rounds):
            run.step(number)
        return run.result(chain_name(tuple(chain)))
    except GradleakError as error:
        return _not_applicable(task, chain_name(tuple(chain)), seed, str(error))


class _Run:
    """The state of one simulation: the weights live in the task's own module, which nobody else holds."""

    def __init__(self, task: Task, channel: Channel, schedule: Schedule, seed: int) -> None:
        deployed: ClientTrainer = channel.deployed()
        # The model is changed once, so that what the rounds teach it stays; the other stages act in every round.
        self._channel = Channel(
            trainer=deployed, stages=tuple(stage for stage in channel.stages if not isinstance(stage, ModelStage))
        )
        self._task, self._trainer, self._schedule, self._seed = task, deployed, schedule, seed
        clients = channel.clients() if channel.clients() > 1 else schedule.clients
        self._parts = _split(task.train, clients, derive(seed, "utility", "clients"))
        self._memories = [Memory() for _ in self._parts]
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        self._losses: list[float] = []
        self._drawn = 0
        self._seconds = 0.0
        self._released: float | None = None
        self._peak = 0

    def step(self, number: int) -> None:
        batches = [self._draw(place, number) for place in range(len(self._parts))]
        self._losses.append(math.fsum(self._loss(batch) for batch in batches) / len(batches))
        if number == 0:
            self._weigh(batches[0])
        start = time.process_time()
        updates: list[Update] = []
        for place, batch in enumerate(batches):
            rng = derive(self._seed, "utility", "channel", number, place)
            update, self._memories[place] = self._channel.client(batch, self._memories[place], rng)
            updates.append(update)
        joined = self._join(tuple(updates), tuple(batch.size for batch in batches), number)
        self._apply(joined, number + 1)
        self._seconds += time.process_time() - start
        nonzero = sum(int((tensor != 0).sum()) for tensor in joined.values())
        self._released = nonzero / joined.entries()

    def _weigh(self, batch: Batch) -> None:
        """Runs one client once more, beside the clock and without a trace, to see how much memory it takes."""
        with PeakMemory() as memory:
            self._channel.client(batch, Memory(), derive(self._seed, "utility", "channel", 0, 0))
        self._peak = memory.peak

    def result(self, defense: str) -> Trained:
        states = [tensor for memory in self._memories for state in memory.states for tensor in state.values()]
        return Trained(
            task=self._task.name,
            defense=defense,
            seed=self._seed,
            accuracy=self._accuracy(),
            chance=self._task.chance,
            losses=tuple(self._losses),
            draws=f"{self._drawn:016x}",
            cpu_seconds=self._seconds,
            kept_bytes=sum(tensor.numel() * tensor.element_size() for tensor in states),
            released=self._released,
            peak_bytes=self._peak,
        )

    def _draw(self, place: int, number: int) -> Batch:
        part = self._parts[place]
        rng = derive(self._seed, "utility", "batch", number, place)
        chosen = torch.randperm(part.size, generator=rng)[: self._schedule.batch_size]
        for index in chosen.tolist():
            self._drawn = (self._drawn * 1_000_003 + index + 1) % 2**64
        return _take(part, chosen)

    def _join(self, updates: tuple[Update, ...], sizes: tuple[int, ...], number: int) -> Update:
        if self._channel.clients() > 1 or len(updates) == 1:
            return self._channel.join(updates, sizes, derive(self._seed, "utility", "join", number))
        total = sum(sizes)

        def mean(name: str, _: Tensor) -> Tensor:
            parts = [update[name].float() * (size / total) for update, size in zip(updates, sizes, strict=True)]
            return torch.stack(parts).sum(0)

        return updates[0].map(mean)

    def _apply(self, update: Update, step: int) -> None:
        sign = 1.0 if self._trainer.training.share == "gradient" else -1.0
        module = self._trainer.subject.module
        first, second = _BETAS
        with torch.no_grad():
            for name, tensor in update.items():
                g = sign * tensor.float()
                m, v = self._moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
                m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
                self._moments[name] = (m, v)
                scale = (v / (1 - second**step)).sqrt() + _EPS
                weight = module.get_parameter(name)
                weight.sub_((self._schedule.lr * (m / (1 - first**step)) / scale).to(weight.dtype))

    def _logits(self, batch: Batch) -> Tensor:
        subject = self._trainer.subject
        with torch.no_grad():
            if batch.modality == "image":
                return subject.logits(pixels=batch.inputs)
            return subject.logits(inputs=batch.inputs, mask=batch.mask)

    def _loss(self, batch: Batch) -> float:
        targets = self._trainer.prepare(batch).targets
        return float(self._trainer.subject.loss.per_group(self._logits(batch), targets).sum())

    def _accuracy(self) -> float:
        test = self._task.test
        return float((self._logits(test).argmax(dim=1) == test.labels).double().mean())


def _split(train: Batch, clients: int, rng: torch.Generator) -> list[Batch]:
    if clients > train.size:
        raise DataError(f"{clients} clients need at least one training record each, and the task has {train.size}.")
    return [_take(train, part) for part in torch.randperm(train.size, generator=rng).tensor_split(clients)]


def _take(batch: Batch, places: Tensor) -> Batch:
    return Batch(inputs=batch.inputs[places], mask=batch.mask[places], labels=batch.labels[places])


def _not_applicable(task: Task, defense: str, seed: int, reason: str) -> Trained:
    return Trained(
        task=task.name,
        defense=defense,
        seed=seed,
        accuracy=None,
        chance=task.chance,
        losses=(),
        draws="",
        cpu_seconds=0.0,
        kept_bytes=0,
        released=None,
        reason=reason,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean over seeds with Student's 95 % interval; ``low`` and ``high`` are None for a single seed."""

    value: float
    low: float | None
    high: float | None
    n: int


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values; at least one."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(value=mean, low=None, high=None, n=1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * spread
    return Interval(value=mean, low=mean - reach, high=mean + reach, n=n)


def drop(defended: Mapping[int, float], plain: Mapping[int, float]) -> Interval:
    """How much accuracy the defense costs: the mean of the differences at equal seeds, which share weights and draws.

    Args:
        defended, plain: accuracy by seed.

    Raises:
        DataError: if they have no seed in common.
    """
    seeds = sorted(defended.keys() & plain.keys())
    if not seeds:
        raise DataError("The runs with and without the defense have no seed in common. Run both with the same seeds.")
    return interval([plain[seed] - defended[seed] for seed in seeds])
