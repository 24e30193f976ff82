"""Identification: which of a list of plausible records is the private one, by the likelihood of the update."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from scipy.optimize import linear_sum_assignment, nnls
from torch import Tensor

from gradleak.attacks.identification.likelihood import Discrepancy
from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Batch, TrainingData
from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.core.knowledge import View
from gradleak.core.specs import name_of
from gradleak.core.stage import Client, DataStage, ProtocolStage, Stage
from gradleak.core.update import Update
from gradleak.matching.replay import Replay, studied
from gradleak.mechanics.client.outer_products import FactoredMatrix
from gradleak.mechanics.client.stage_noise import released_std
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.embeddings.labels import single_label

_IGNORED, _TINY = -100, 1e-30
_EXPLAINED = 1e-8
"""A misfit below this share of the update's own size is rounding."""
_FOLD, _SIGNS = 8192, 0
"""Length of a sketch, several times the number of candidates; seed of its signs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identification(Attack):
    """Ranks the records of a closed world by how well each explains the update.

    One private record: every candidate c is trained on and sent through the surrogates of the known stages, and ranked by

        D(c) = min over labels  Σ_t w_t ‖s_t(c) − u_t‖²,   w_t = 1/σ_t² where stages add noise of known deviation σ_t
                                                           to tensor t (then −D/2 is the Gaussian log-likelihood),
                                                           1/‖u_t‖² elsewhere, 0 where u_t is mere rounding

    Several private records: their update is near a mean of their own ones, so all candidates (with every possible label)
    are weighed at once by non-negative least squares in the same weights, and the heaviest are taken. Where these do not
    explain the update to rounding, each is then exchanged for every other candidate as long as D of the whole batch falls.

    Args:
        distance: "likelihood" as above, or "cosine" over all tensors together, which no scaling can mislead.

    Guarantees:
        Without a stage, with known labels and one record, D is zero up to rounding at the private record.
        Order and number of the candidates are the only thing that is known of them: a tie is broken at random.

    Source: the notes, section 0: similarity of a reconstruction understates what an update tells about a finite set.
    """

    summary: ClassVar[str] = "Which of many plausible records is the private one, by the likelihood of the update."
    needs: ClassVar[frozenset[str]] = frozenset({"subject", "trainer", "batch_size", "candidates"})
    uses: ClassVar[frozenset[str]] = frozenset({"stages", "labels"})

    distance: Literal["likelihood", "cosine"] = "likelihood"

    def __post_init__(self) -> None:
        if self.distance not in ("likelihood", "cosine"):
            raise SpecError(f"identification: distance={self.distance} is not known. Choose likelihood or cosine.")

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        trainer: ClientTrainer = view["trainer"]
        trainer.require_replay()
        if trainer.subject.loss.hides_tokens:
            raise NotApplicableError("The positions that the masked-LM loss hid are unknown to this adversary.")
        candidates: tuple[Tensor, ...] = tuple(view["candidates"])
        world = _World.of(update, view, distance=self.distance, rng=rng)
        wanted = min(int(view["batch_size"]), len(candidates))
        find = _single if wanted == 1 else _several
        ranking = find(world, candidates, wanted, torch.randperm(len(candidates), generator=rng).tolist(), clock)
        return ranking.answer(candidates, world.stages)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """Places of candidates: the chosen ones, and all others that were tried, the most plausible first."""

    chosen: list[int]
    others: list[int]
    value: float
    runner_up: float
    spent: bool

    def answer(self, candidates: tuple[Tensor, ...], stages: tuple[Stage, ...]) -> Reconstruction:
        if not self.chosen:
            return Reconstruction(
                status=Status.NOTHING_FOUND, message="The time was spent before a candidate was tried."
            )
        return Reconstruction(
            records=tuple(candidates[place].clone() for place in self.chosen),
            ranking=tuple(candidates[place].clone() for place in (*self.chosen, *self.others)),
            status=Status.BUDGET_SPENT if self.spent else Status.CONVERGED,
            message=f"Ranked {len(candidates)} candidates for {len(self.chosen)} records.",
            adapted=tuple(name_of(stage) for stage in stages),
            statistics={"candidates": float(len(candidates)), "value_of_the_last_chosen": self.value}
            | ({"value_of_the_runner_up": self.runner_up} if math.isfinite(self.runner_up) else {}),
        )


def _single(world: _World, candidates: tuple[Tensor, ...], wanted: int, order: list[int], clock: Clock) -> _Found:
    """Every candidate alone, each with the label that suits it best."""
    values: dict[int, float] = {}
    for place in order:
        if clock.spent():
            break
        values[place] = min(world.misfit([candidates[place]], [label]) for label in world.open_labels())
        clock.progress(len(values) / len(order), f"{len(values)} of {len(order)} candidates")
    ranked = [*sorted(values, key=values.__getitem__), *(place for place in order if place not in values)]
    best = [values[place] for place in ranked[:2] if place in values]
    return _Found(
        chosen=ranked[:1] if values else [],
        others=ranked[1:],
        value=best[0] if best else math.inf,
        runner_up=best[-1] if best else math.inf,
        spent=len(values) < len(order),
    )


def _several(world: _World, candidates: tuple[Tensor, ...], wanted: int, order: list[int], clock: Clock) -> _Found:
    """Weighs all candidates together, takes the heaviest and improves the choice by exchanges."""
    labels = world.open_labels()
    shares, spent = _shares(world, candidates, labels, order, clock)
    if not shares:
        return _Found(chosen=[], others=order, value=math.inf, runner_up=math.inf, spent=True)
    weight = torch.tensor([[shares.get((place, label), 0.0) for place in range(len(candidates))] for label in labels])
    if world.labels is not None and len(world.labels) == wanted:
        given = list(world.labels)
        slots = [labels.index(label) for label in given]
        chosen: list[int] = linear_sum_assignment(weight[slots].numpy(), maximize=True)[1].tolist()
    else:
        chosen = sorted(order, key=lambda place: -float(weight[:, place].max()))[:wanted]
        given = [labels[int(weight[:, place].argmax())] for place in chosen]

    def misfit(places: list[int]) -> float:
        return world.misfit([candidates[place] for place in places], given)

    value = misfit(chosen)
    rivals = {place: math.inf for place in order}
    moved = value > _EXPLAINED * world.size
    while moved and not spent:
        moved = False
        for slot, place in itertools.product(range(wanted), order):
            if place in chosen:
                continue
            if spent := clock.spent():
                break
            trial = [*chosen[:slot], place, *chosen[slot + 1 :]]
            new = misfit(trial)
            rivals[place] = min(rivals[place], new)
            if new < value:
                rivals[chosen[slot]] = min(rivals[chosen[slot]], value)
                chosen, value, moved = trial, new, True
    others = [place for place in order if place not in chosen]
    others.sort(key=lambda place: (rivals[place], -float(weight[:, place].max())))
    runner_up = min((rivals[place] for place in others), default=math.inf)
    return _Found(chosen=chosen, others=others, value=value, runner_up=runner_up, spent=spent)


def _shares(
    world: _World, candidates: tuple[Tensor, ...], labels: list[int], order: list[int], clock: Clock
) -> tuple[dict[tuple[int, int], float], bool]:
    """How much of every candidate with every label is in the update, and whether time ran out before all were tried."""
    rows: dict[tuple[int, int], Tensor] = {}
    for place, label in itertools.product(order, labels):
        if clock.spent():
            break
        rows[place, label] = world.sketch(world.simulated([candidates[place]], [label]))
        clock.progress(len(rows) / (len(order) * len(labels)), f"{len(rows)} candidates with a label")
    if not rows:
        return {}, True
    target = world.sketch(world.discrepancy.observed)
    columns = torch.stack(list(rows.values()), 1)
    amounts, _ = nnls(columns.numpy(), target.numpy())
    parts: dict[int, Tensor] = {}
    for (place, _), row, amount in zip(rows, columns.T, amounts, strict=True):
        parts[place] = parts.get(place, torch.zeros_like(row)) + amount * row
    # The gradients of one record with all labels are dependent (softmax), so only what they add up to is determined.
    shares = {key: float(parts[key[0]] @ row / row.square().sum().clamp_min(_TINY)) for key, row in rows.items()}
    return shares, len(rows) < len(order) * len(labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class _World:
    """One observation, ready to be explained by candidates."""

    trainer: ClientTrainer
    stages: tuple[Stage, ...]
    replay: Replay
    discrepancy: Discrepancy
    labels: tuple[int, ...] | None
    rng: torch.Generator

    @staticmethod
    def of(update: Update, view: View, *, distance: str, rng: torch.Generator) -> _World:
        trainer: ClientTrainer = view["trainer"]
        known: tuple[Stage, ...] = tuple(view.get("stages") or ())
        released, stages = studied(update, known, trainer)
        skipped = frozenset().union(*(stage.ignored(trainer) for stage in stages))
        names = tuple(name for name in trainer.names() if name in update and name not in skipped)
        if not names:
            raise NotApplicableError("The update holds no parameter that a replay of the training can simulate.")
        observed = {name: released[name] for name in names}
        records = int(view["batch_size"])
        stds = {n: released_std(stages, n, u, trainer=trainer, records=records) for n, u in observed.items()}
        labels = view.get("labels")
        if labels is None and trainer.subject.loss.classifies_records:
            label = single_label(update, trainer.subject.anatomy, batch_size=records)
            noisy = any(released_std(known, n, u, trainer=trainer, records=records) != 0.0 for n, u in observed.items())
            labels = None if label is None or noisy else [label]
        return _World(
            trainer=trainer,
            stages=stages,
            # Which client holds a record is unknown and, for a sum of gradients, of no account.
            replay=Replay(
                trainer=trainer,
                stages=tuple(stage for stage in stages if not isinstance(stage, ProtocolStage)),
                names=names,
                released=released,
                share=Update(observed).norm() / max(Update(released).norm(), _TINY) or 1.0,
            ),
            discrepancy=Discrepancy.of(observed, stds, cosine=distance == "cosine"),
            labels=None
            if labels is None
            else tuple(int(known_label) for known_label in torch.as_tensor(labels).flatten()),
            rng=rng,
        )

    @property
    def size(self) -> float:
        """The misfit of an update of zeros."""
        return self.discrepancy({name: torch.zeros_like(tensor) for name, tensor in self.discrepancy.observed.items()})

    def misfit(self, records: list[Tensor], labels: list[int]) -> float:
        """How badly a batch of these records explains the update."""
        return self.discrepancy(self.simulated(records, labels))

    def sketch(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """All tensors in the weights of the misfit, as one vector; long ones folded with random signs, which is linear and
        keeps angles on average."""
        signs = torch.Generator().manual_seed(_SIGNS)
        total = torch.zeros(_FOLD, dtype=torch.float64)
        parts: list[Tensor] = []
        entries = sum(tensor.numel() for tensor in self.discrepancy.observed.values())
        for name, observed in self.discrepancy.observed.items():
            weight = 1.0 if self.discrepancy.cosine else math.sqrt(self.discrepancy.weights[name])
            part = weight * tensors[name].detach().double().flatten().cpu()
            if entries <= _FOLD:
                parts.append(part)
                continue
            part = torch.nn.functional.pad(part, (0, -observed.numel() % _FOLD)).view(-1, _FOLD)
            total += (part * (2.0 * torch.randint(2, part.shape, generator=signs, dtype=torch.int8) - 1.0)).sum(0)
        return torch.cat(parts) if parts else total

    def open_labels(self) -> list[int]:
        """Labels that a record may have: those known of the batch, or all."""
        if not self.trainer.subject.loss.labels_records:
            return [0]
        return list(range(self.trainer.subject.classes)) if self.labels is None else sorted(set(self.labels))

    def _labeled(self, records: list[Tensor], labels: list[int]) -> TrainingData:
        """The records as what is trained on."""
        subject, batch = self.trainer.subject, _padded(records)
        if not subject.loss.labels_records:
            ids = batch.inputs.masked_fill(~batch.mask, _IGNORED)
            return replace(self.trainer.prepare(batch), targets=subject.loss.targets(ids, subject.classes))
        return self.trainer.prepare(replace(batch, labels=torch.tensor(labels)))

    def simulated(self, records: list[Tensor], labels: list[int]) -> Mapping[str, Tensor]:
        """The release of a batch, as the attacker expects it."""
        data = self._labeled(records, labels)
        client = Client(batch=_as_batch(data), data=data, trainer=self.trainer)
        for stage in self.stages:
            if isinstance(stage, DataStage):
                client = replace(client, data=stage.surrogate(client))
        trained = client.data
        with torch.enable_grad():
            gradients = self.replay.simulate(trained.inputs.unsqueeze(0), trained.targets.unsqueeze(0), trained.mask)
        dense: dict[str, Tensor] = {}
        for name, part in gradients.items():
            tensor = part.dense() if isinstance(part, FactoredMatrix) else part
            dense[name] = tensor.detach().reshape(self.replay.released[name].shape)
        return dense


def _padded(records: list[Tensor]) -> Batch:
    """Records of any length as a batch, with labels that mean nothing yet."""
    labels = torch.zeros(len(records), dtype=torch.long)
    if records[0].is_floating_point():
        mask = torch.ones(len(records), dtype=torch.bool)
        return Batch(inputs=torch.stack(records), mask=mask, labels=labels)
    inputs = torch.nn.utils.rnn.pad_sequence(records, batch_first=True)
    lengths = torch.tensor([len(record) for record in records])
    return Batch(inputs=inputs, mask=torch.arange(inputs.shape[1]) < lengths[:, None], labels=labels)


def _as_batch(data: TrainingData) -> Batch:
    return Batch(inputs=data.inputs, mask=data.mask, labels=torch.zeros(data.size, dtype=torch.long))
