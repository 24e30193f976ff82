"""What an adversary holds as the tensors that the search needs, or the reason why it does not apply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.stage import Stage
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.patches.closed_form import position_rows
from gradleak.mechanics.patches.first_tokens import FirstTokens, read_first_tokens
from gradleak.mechanics.patches.passes import DoublePass
from gradleak.mechanics.patches.spaces import PatchSpaces, spaces_from_norm, spaces_from_positions
from gradleak.models import Subject
from gradleak.models.reading.patches import PatchEmbedding, read_patch_embedding


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchCase:
    """A gradient, or what is left of it after some records were subtracted.

    Attributes:
        shared: tensors of the gradient in float64, positive (a delta is divided by −lr).
        records: how many it holds; of: how many the batch had, of which each weighs 1 / of.
        tokens: the constant parts of the first tokens, where no table's gradient was shared.
    """

    shared: Mapping[str, Tensor]
    records: int
    of: int
    subject: Subject
    entrance: PatchEmbedding
    trainer: ClientTrainer
    passes: DoublePass
    stages: tuple[Stage, ...]
    tokens: FirstTokens | None

    @staticmethod
    def of_view(update: Update, view: View) -> BatchCase:
        """Raises ``NotApplicableError`` with the reason where the search cannot start."""
        subject: Subject = view["subject"]
        trainer: ClientTrainer = view["trainer"]
        entrance = read_patch_embedding(subject.module, subject.anatomy)
        if entrance is None:
            raise NotApplicableError(f"{subject.name} does not cut pictures into disjoint patches by one linear map.")
        _check_training(trainer)
        if entrance.weight not in update or not bool(update[entrance.weight].any()):
            raise NotApplicableError("The gradient of the patch map is not part of the update.")
        records = int(view["batch_size"])
        has_rows = entrance.table is not None and entrance.table in update and bool(update[entrance.table].any())
        has_rows = (
            has_rows
            and entrance.mixing is not None
            and int(torch.linalg.matrix_rank(entrance.mixing)) == entrance.count
        )
        tokens = None if has_rows else read_first_tokens(subject, entrance)
        if not has_rows and (tokens is None or tokens.undetermined()):
            raise NotApplicableError(
                "No gradient of a position table was shared, and the constant rows added to the patches do not tell the positions."
            )
        width = update[entrance.weight].shape[0]
        needed = records * entrance.count if has_rows or tokens is None else tokens.equations_needed(records)
        if needed > width:
            raise NotApplicableError(
                f"{records} records of {entrance.count} patches need a width of at least {needed}, the model is {width} wide."
            )
        scale = -trainer.training.lr if trainer.training.share == "delta" else 1.0
        return BatchCase(
            shared={name: tensor.double() / scale for name, tensor in update.items()},
            records=records,
            of=records,
            subject=subject,
            entrance=entrance,
            trainer=trainer,
            passes=DoublePass.of(subject),
            stages=tuple(view.get("stages") or ()),
            tokens=tokens,
        )

    def gradient(self) -> Tensor:
        """dL/dW of the patch map, ``[width features]``."""
        return self.shared[self.entrance.weight].flatten(1)

    def rows(self) -> Tensor | None:
        """Σ_b Δ_b, ``[patches width]``, or None where no table was shared."""
        table, mixing = self.entrance.table, self.entrance.mixing
        if self.tokens is not None or table is None or mixing is None:
            return None
        return position_rows(self.shared[table], mixing)

    def spaces(self) -> PatchSpaces:
        """The affine spaces of the patches, as the model reads them."""
        rows = self.rows()
        if rows is not None:
            return spaces_from_positions(rows, self.gradient(), records=self.records)
        assert self.tokens is not None
        maps = self.subject.anatomy.blocks[0].attention_inputs
        shared = [m.as_matrix(self.shared[m.weight]) for m in maps if m.weight in self.shared]
        return spaces_from_norm(self.tokens, self.gradient(), shared, records=self.records)

    def without(self, gradient: Mapping[str, Tensor]) -> BatchCase:
        """After a record of this gradient was taken out."""
        left = {name: self.shared[name] - part / self.of for name, part in gradient.items()}
        return replace(self, shared=left, records=self.records - 1)

    def by_entry(self, values: tuple[float, ...], default: float) -> Tensor:
        """A value per channel as one per entry of a patch."""
        per_channel = torch.tensor(values or (default,) * self.entrance.shape[0], dtype=torch.float64)
        return per_channel.repeat_interleave(self.entrance.features // self.entrance.shape[0])

    def pictures(self, patches: Tensor, *, rest: float = 0.0) -> Tensor:
        """Pictures in [0, 1] of patches ``[batch patches features]`` as the model reads them."""
        std, mean = self.by_entry(self.subject.pixel_std, 1.0), self.by_entry(self.subject.pixel_mean, 0.0)
        return self.entrance.to_pixels(patches * std + mean, rest=rest)


def _check_training(trainer: ClientTrainer) -> None:
    trainer.require_replay()
    training = trainer.training
    if not trainer.subject.loss.classifies_records:
        raise NotApplicableError(f"One class per record is read from the update; the loss is {trainer.subject.loss}.")
    if not training.single or not training.plain or training.optimizer != "sgd":
        raise NotApplicableError(
            "The search subtracts the gradient of every record that it found, so it needs one gradient of the whole batch, or one "
            "step of SGD."
        )
    if training.dropout:
        raise NotApplicableError(
            "The client trains with dropout, whose masks are unknown, so no record's gradient can be replayed."
        )
