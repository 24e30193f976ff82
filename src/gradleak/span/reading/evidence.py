"""What an adversary holds comes as an update and a view; the steps of the span attack need it as a model to probe, readable
tensors and the noise on each. Must not know how tokens or sequences are searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.specs import name_of
from gradleak.core.stage import ModelStage, ProtocolStage, Stage, UpdateStage
from gradleak.core.update import Update
from gradleak.mechanics.client.stage_noise import released_std
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.subspace.completion import is_pruned
from gradleak.mechanics.subspace.noise_level import Noise
from gradleak.mechanics.subspace.number_format import WIDEST, relative_rounding, significant_bits
from gradleak.models import Subject
from gradleak.span.language.language_model import LanguageModel, load_prior
from gradleak.span.reading.adamw_step import UndoneStep, first_step
from gradleak.span.reading.model_mismatch import ActivationMismatch, format_of

_UNKNOWN_TOKENS = 1024
"""Tokens assumed in a batch of unknown size, for the rounding of the sums over them only."""
_ROWS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackInput:
    """What this adversary holds, in the form the steps need it.

    Attributes:
        update: what was released; ``readable``: tensors with the same column spaces as the gradient's.
        pruned: whether entries of the first attention's gradient were left out.
        undone: where that took undoing a step of AdamW, what it gave.
        prior: what is believed of text beforehand; None if nothing is.
    """

    update: Update
    readable: Update
    subject: Subject
    model: Model
    view: View
    mismatch: ActivationMismatch
    stages: tuple[Stage, ...]
    batch_size: int | None
    seq_len: int | None
    pruned: bool = False
    undone: UndoneStep | None = None
    prior: LanguageModel | None = None

    @staticmethod
    def of(update: Update, view: View, prior: str | None = None) -> AttackInput:
        given, trainer = view["subject"], view.get("trainer")
        subject: Subject = given.in_full_precision()
        stages = tuple(view.get("stages") or ())
        _check_shapes(update, subject)
        if steps_by_adamw(trainer) and stages:
            raise NotApplicableError(
                "The client used AdamW, and a stage changed what it shared: the step cannot be undone to a gradient any more."
            )
        midway = _midway(update, subject, trainer, stages)
        undone = first_step(update, view["trainer"]) if steps_by_adamw(trainer) else None
        return AttackInput(
            update=update,
            readable=update if undone is None else undone.gradients,
            undone=undone,
            subject=subject,
            model=Model(subject=subject, parameters=midway),
            mismatch=ActivationMismatch(
                subject=subject,
                midway=midway,
                dtype=_own_format(given) or (format_of(update) if trainer is None else None),
                dropout=trainer is not None and trainer.training.dropout,
            ),
            view=view,
            stages=stages,
            batch_size=view.get("batch_size"),
            seq_len=view.get("seq_len"),
            pruned=any(is_pruned(update[m.weight]) for m in subject.anatomy.first_maps() if m.weight in update),
            prior=None if prior is None else load_prior(prior, subject),
        )

    @property
    def summands(self) -> int:
        return self.batch_size * self.seq_len if self.batch_size and self.seq_len else _UNKNOWN_TOKENS

    def noise_std(self, name: str) -> Noise:
        """Stage noise, and the rounding of the weights themselves where their difference was shared."""
        trainer = self.view.get("trainer")
        if self.undone is not None:
            return self.undone.noise[name]
        # Noise of a size that cannot be told is left to the update's own spectrum, and rounding to the format that the entries show.
        parts = [0.0 if self.rounded else self._stage_std(self.stages, name) or 0.0]
        if trainer is not None and trainer.training.share == "delta":
            weight = self.subject.module.get_parameter(name).detach().double()
            size = float(weight.square().mean().sqrt())
            parts.append(
                relative_rounding(WIDEST) * size * math.sqrt(trainer.training.local_steps(self.batch_size or 1))
            )
        return math.hypot(*parts)

    @property
    def rounded(self) -> bool:
        """Whether all that stages do is to round to a short number format, the same for the same update: then the entries show it, and a
        client that releases in this format would share the same."""
        if not self.stages or not all(isinstance(stage, UpdateStage) for stage in self.stages):
            return False
        if max(significant_bits(tensor) for tensor in self.update.values()) >= WIDEST:
            return False
        twice = [self.apply_stages(self.update, torch.Generator().manual_seed(seed)) for seed in range(2)]
        return all(torch.equal(tensor, twice[run][name]) for name, tensor in self.update.items() for run in range(2))

    def apply_stages(self, update: Update, rng: torch.Generator) -> Update:
        """What stages that act on updates alone make of one."""
        for stage in self.stages:
            if isinstance(stage, UpdateStage):
                update = stage.apply(update, rng)
        return update

    @property
    def still(self) -> bool:
        """Whether the update is one gradient as it was, of a client whose layers read what the probe computes: then what no
        token explains is a token missed, or noise."""
        plain = self.model.parameters is None and self.readable is self.update
        return plain and not self.mismatch.dropout and not self.pruned

    @property
    def silent(self) -> bool:
        """Whether no noise sits on the update: rows of the token table that no token reached are exactly zero, others have no zeros."""
        rows = self.update.get(self.subject.anatomy.token_embedding or "")
        if rows is None or self.stages or not self.still:
            return False
        filled = torch.cat([(part != 0).sum(dim=1) for part in rows.split(_ROWS)])
        live = filled[filled > 0]
        return 0 < len(live) <= len(rows) // 2 and int(live.median()) == rows.shape[1]

    def adapted(self) -> tuple[str, ...]:
        """Stages that the search accounts for: another model, clients, scaling (which moves no span), noise of a known size."""
        name = next(iter(self.update))
        return tuple(
            name_of(stage)
            for stage in self.stages
            if isinstance(stage, (ModelStage, ProtocolStage))
            or stage.norm_bound() is not None
            or self._stage_std((stage,), name)
        )

    def _stage_std(self, stages: tuple[Stage, ...], name: str) -> float | None:
        trainer = self.view.get("trainer")
        return released_std(stages, name, self.update[name], trainer=trainer, records=self.batch_size)


def _own_format(subject: Subject) -> torch.dtype | None:
    """The format of a model that does not compute in float32; a known client runs its model in it, whatever it releases."""
    dtype = next(iter(subject.parameters().values())).dtype
    return dtype if torch.finfo(dtype).bits < 32 else None


def _check_shapes(update: Update, subject: Subject) -> None:
    own = subject.parameters()
    for name, tensor in update.items():
        if name in own and tensor.shape != own[name].shape:
            raise NotApplicableError(
                f"The update of {name!r} has shape {tuple(tensor.shape)}, but {subject.name} has {tuple(own[name].shape)}: it "
                "comes from another model. Give the model that was trained."
            )


def steps_by_adamw(trainer: ClientTrainer | None) -> bool:
    return trainer is not None and trainer.training.share == "delta" and trainer.training.optimizer == "adamw"


def _midway(
    update: Update, subject: Subject, trainer: ClientTrainer | None, stages: tuple[Stage, ...]
) -> dict[str, Tensor] | None:
    """The mean of the parameters before and after local training, whose inputs the sum over the steps holds to second
    order; None where the update is a gradient or was altered."""
    if trainer is None or trainer.training.share != "delta" or trainer.training.single or stages:
        return None
    return {name: subject.module.get_parameter(name).detach() + delta.float() / 2 for name, delta in update.items()}


def closing_token(subject: Subject) -> int | None:
    """The special token that ends every record, as the tokenizer itself places it; None if it places none."""
    if subject.tokenizer is None:
        return None
    ids, mask = subject.tokenizer.encode(["a"], 8)
    last = int(ids[0][mask[0]][-1])
    return last if last in subject.tokenizer.special_ids else None
