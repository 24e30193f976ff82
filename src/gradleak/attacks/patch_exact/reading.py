"""What an adversary holds as the tensors that the closed form needs, or the reason why it does not apply."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.stage import Stage
from gradleak.core.update import Update
from gradleak.mechanics.client.stage_noise import released_std
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.patches.closed_form import position_rows
from gradleak.mechanics.patches.errors import entry_variance
from gradleak.mechanics.patches.noisy import Noisy
from gradleak.models import Subject
from gradleak.models.reading.patches import PatchEmbedding, read_patch_embedding


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchCase:
    """One observation of a vision transformer.

    Attributes:
        gradient: dL/dW of the patch map, ``[width features]``; its columns are those of patches as the model reads them.
    """

    update: Update
    subject: Subject
    entrance: PatchEmbedding
    trainer: ClientTrainer | None
    stages: tuple[Stage, ...]
    batch_size: int | None
    gradient: Float[Tensor, "width features"]

    @staticmethod
    def of(update: Update, view: View) -> PatchCase:
        """Raises ``NotApplicableError`` for models without patches, several records, and steps that are no gradients."""
        subject: Subject = view["subject"]
        entrance = read_patch_embedding(subject.module, subject.anatomy)
        if entrance is None:
            raise NotApplicableError(
                f"{subject.name} does not cut pictures into disjoint patches by one linear map, which the closed form inverts."
            )
        batch_size = view.get("batch_size")
        if batch_size is not None and int(batch_size) != 1:
            raise NotApplicableError(
                f"The closed form is for one record, this batch has {batch_size}: their position rows are only known in sum. "
                "Use patch_batch."
            )
        trainer: ClientTrainer | None = view.get("trainer")
        if trainer is not None and trainer.training.share == "delta" and trainer.training.optimizer == "adamw":
            raise NotApplicableError(
                "The client stepped with AdamW, which divides every entry by its own size; the closed form needs gradients or "
                "steps of SGD."
            )
        if entrance.weight not in update or not bool(update[entrance.weight].any()):
            raise NotApplicableError(
                "The gradient of the patch map is not part of the update (frozen, not shared, or zero)."
            )
        return PatchCase(
            update=update,
            subject=subject,
            entrance=entrance,
            trainer=trainer,
            stages=tuple(view.get("stages") or ()),
            batch_size=None if batch_size is None else int(batch_size),
            gradient=update[entrance.weight].flatten(1),
        )

    def rows(self) -> Float[Tensor, "patches width"] | None:
        """Δ, or None where no table was shared that tells it."""
        table, mixing = self.entrance.table, self.entrance.mixing
        if table is None or mixing is None or table not in self.update or not bool(self.update[table].any()):
            return None
        return position_rows(self.update[table], mixing)

    def channel_mean(self) -> Float[Tensor, " features"]:
        """What a patch's entries are before normalization when the model reads zero, and their unit (``channel_std``)."""
        return self._by_entry(self.subject.pixel_mean, 0.0)

    def channel_std(self) -> Float[Tensor, " features"]:
        return self._by_entry(self.subject.pixel_std, 1.0)

    def picture(self, patches: Float[Tensor, "patches features"], *, rest: float) -> Float[Tensor, "1 c h w"]:
        """Pixels of patches as the model reads them; ``rest`` stands where no patch lies."""
        pixels = patches * self.channel_std() + self.channel_mean()
        return self.entrance.to_pixels(pixels.unsqueeze(0), rest=rest)

    def stage_std(self, name: str) -> float | None:
        """Standard deviation of what the known stages added; None if that cannot be told."""
        return released_std(self.stages, name, self.update[name], trainer=self.trainer, records=1)

    def noisy(self, name: str) -> Noisy:
        """A tensor with the variances of its errors. Noise of unknown size counts as none here."""
        training = None if self.trainer is None else self.trainer.training
        delta = training is not None and training.share == "delta"
        variance = entry_variance(
            self.update[name],
            stage_std=self.stage_std(name) or 0.0,
            weight=self.subject.module.get_parameter(name) if delta else None,
            steps=training.local_steps(1) if training is not None else 1,
        )
        return Noisy(value=self.update[name].double(), variance=variance)

    def noisy_rows(self) -> Noisy:
        """Δ with variances, of a table whose rows select patches or interpolate them."""
        table, mixing = self.entrance.table, self.entrance.mixing
        assert table is not None and mixing is not None
        stored = self.noisy(table)
        rows = position_rows(stored.value, mixing)
        assert rows is not None
        used = (mixing != 0).any(dim=1)
        spread = torch.linalg.pinv(mixing[used]).square()
        return Noisy(value=rows, variance=spread @ stored.variance.reshape(-1, rows.shape[1])[used])

    def _by_entry(self, values: tuple[float, ...], default: float) -> Float[Tensor, " features"]:
        per_channel = torch.tensor(values or (default,) * self.entrance.shape[0], dtype=torch.float64)
        return per_channel.repeat_interleave(self.entrance.features // self.entrance.shape[0])
