"""Identification: which of a list of plausible records is the private one, by the likelihood of the update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Batch, TrainingData, soft_labels
from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.core.knowledge import View
from gradleak.core.specs import name_of
from gradleak.core.stage import Client, DataStage, ProtocolStage, Stage
from gradleak.core.update import Update
from gradleak.mechanics.labels import single_label
from gradleak.mechanics.likelihood import Discrepancy
from gradleak.mechanics.outer_sums import OuterSum
from gradleak.mechanics.replay import Replay, studied
from gradleak.mechanics.stage_noise import released_std
from gradleak.mechanics.training import ClientTrainer

_IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Identification(Attack):
    """Ranks the records of a closed world by how well each explains the update.

    One private record: every candidate c is trained on and sent through the surrogates of the known stages, and ranked by

        D(c) = min over labels  Σ_t w_t ‖s_t(c) − u_t‖²,   w_t = 1/σ_t² where stages add noise of known deviation σ_t
                                                           to tensor t (then −D/2 is the Gaussian log-likelihood),
                                                           1/‖u_t‖² elsewhere, 0 where u_t is mere rounding

    Several private records: greedily, the record (with a label that is left) that with those already chosen explains the
    update best, the scale of a part of the batch left free; what is never chosen is ranked by its last value.

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
        if trainer.subject.loss == "masked-lm":
            raise NotApplicableError("The positions that the masked-LM loss hid are unknown to this adversary.")
        candidates: tuple[Tensor, ...] = tuple(view["candidates"])
        world = _World.of(update, view, distance=self.distance, rng=rng)
        order = torch.randperm(len(candidates), generator=rng).tolist()
        chosen: list[int] = []
        labels: list[int] = []
        wanted = min(int(view["batch_size"]), len(candidates))
        values: dict[int, float] = {}
        spent = False
        while len(chosen) < wanted and not spent:
            values, best = {}, {}
            for place in order:
                if place in chosen:
                    continue
                if clock.spent():
                    spent = True
                    break
                records = [candidates[each] for each in (*chosen, place)]
                values[place], best[place] = world.value(records, labels, whole=len(chosen) + 1 == wanted)
                done = len(chosen) + len(values) / len(order)
                clock.progress(min(done / wanted, 1.0), f"{len(values)} of {len(order)} candidates")
            if values:
                chosen.append(min(values, key=values.__getitem__))
                labels.append(best[chosen[-1]])
        return _answer(candidates, chosen, values, wanted, order, spent=spent, stages=world.stages)


def _answer(
    candidates: tuple[Tensor, ...],
    chosen: list[int],
    values: Mapping[int, float],
    wanted: int,
    order: list[int],
    *,
    spent: bool,
    stages: tuple[Stage, ...],
) -> Reconstruction:
    if not chosen:
        return Reconstruction(status=Status.NOTHING_FOUND, message="The time was spent before a candidate was tried.")
    tried = sorted((place for place in values if place not in chosen), key=values.__getitem__)
    ranking = [*chosen, *tried, *(place for place in order if place not in values and place not in chosen)]
    runner_up = values[tried[0]] if tried else values[chosen[-1]]
    return Reconstruction(
        records=tuple(candidates[place].clone() for place in chosen),
        ranking=tuple(candidates[place].clone() for place in ranking),
        status=Status.BUDGET_SPENT if spent else Status.CONVERGED,
        message=f"Ranked {len(candidates)} candidates for {wanted} records.",
        adapted=tuple(name_of(stage) for stage in stages),
        statistics={
            "candidates": float(len(candidates)),
            "value_of_the_last_chosen": values[chosen[-1]],
            "value_of_the_runner_up": runner_up,
        },
    )


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
        released, stages = studied(update, tuple(view.get("stages") or ()), trainer)
        skipped = frozenset().union(*(stage.ignored(trainer) for stage in stages))
        names = tuple(name for name in trainer.names() if name in update and name not in skipped)
        if not names:
            raise NotApplicableError("The update holds no parameter that a replay of the training can simulate.")
        observed = {name: released[name] for name in names}
        records = int(view["batch_size"])
        stds = {n: released_std(stages, n, u, trainer=trainer, records=records) for n, u in observed.items()}
        labels = view.get("labels")
        if labels is None and trainer.subject.loss == "classification":
            label = single_label(update, trainer.subject.anatomy, batch_size=records)
            labels = None if label is None or any(std != 0.0 for std in stds.values()) else [label]
        return _World(
            trainer=trainer,
            stages=stages,
            # Which client holds a record is unknown and, for a sum of gradients, of no account.
            replay=Replay(
                trainer=trainer,
                stages=tuple(stage for stage in stages if not isinstance(stage, ProtocolStage)),
                names=names,
                released=released,
                share=Update(observed).norm() / max(Update(released).norm(), torch.finfo(torch.float32).tiny) or 1.0,
            ),
            discrepancy=Discrepancy.of(observed, stds, cosine=distance == "cosine"),
            labels=None if labels is None else tuple(int(each) for each in torch.as_tensor(labels).flatten()),
            rng=rng,
        )

    def value(self, records: list[Tensor], labels: list[int], *, whole: bool) -> tuple[float, int]:
        """How badly a batch of these records explains the update, and the label of the last one that explains it best.

        Args:
            labels: those of all records but the last; whole: False if more records are in the batch, so that the scale of
                these is unknown.
        """
        open_labels = self._open(labels)
        found = {
            label: self.discrepancy(self._simulated(self._labeled(records, [*labels, label])), free_scale=not whole)
            for label in open_labels
        }
        best = min(found, key=found.__getitem__)
        return found[best], best

    def _open(self, taken: list[int]) -> list[int]:
        """Labels that the next record may have: those known of the batch and not taken yet, or all."""
        if self.trainer.subject.loss != "classification":
            return [0]
        if self.labels is None:
            return list(range(self.trainer.subject.classes))
        left = list(self.labels)
        for label in taken:
            if label in left:
                left.remove(label)
        return sorted(set(left or self.labels))

    def _labeled(self, records: list[Tensor], labels: list[int]) -> TrainingData:
        """The records as what is trained on."""
        subject, batch = self.trainer.subject, _padded(records)
        if subject.loss != "classification":
            ids = batch.inputs.masked_fill(~batch.mask, _IGNORED)
            return replace(self.trainer.prepare(batch), targets=soft_labels(ids, subject.classes))
        return self.trainer.prepare(replace(batch, labels=torch.tensor(labels)))

    def _simulated(self, data: TrainingData) -> Mapping[str, Tensor]:
        client = Client(batch=_as_batch(data), data=data, trainer=self.trainer)
        for stage in self.stages:
            if isinstance(stage, DataStage):
                client = replace(client, data=stage.surrogate(client))
        trained = client.data
        with torch.enable_grad():
            found = self.replay.simulate(trained.inputs.unsqueeze(0), trained.targets.unsqueeze(0), trained.mask)
        dense: dict[str, Tensor] = {}
        for name, part in found.items():
            tensor = part.dense() if isinstance(part, OuterSum) else part
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
