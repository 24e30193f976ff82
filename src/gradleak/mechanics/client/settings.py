"""What a client does with its batch before it shares the result, as settings that are checked before any work.
Must not know models or data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from gradleak.core.errors import SpecError
from gradleak.core.stage import TrainingStage
from gradleak.models import LoRA

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTraining:
    """What the client does with its batch before it shares the result.

    Attributes:
        share: ``gradient`` of the mean loss, or ``delta`` = weights after the local steps minus before.
        steps: full-batch steps (delta only).
        mini_batch: records of a step, where a delta runs over ``epochs`` passes instead of ``steps``. Every pass draws a
            new order from the client's generator and keeps a smaller last step; None for the full batch.
        epochs: passes over the batch (with ``mini_batch`` only).
        micro_batch: records whose mean gradient is taken at once; a step uses the plain mean of these means, as training
            loops do that divide each loss by the number of micro-batches. Under the language-model losses, or with a
            smaller last micro-batch, that is another gradient than that of the mean loss. None for all at once.
        lr: learning rate of the local steps (delta only).
        optimizer: ``sgd`` or ``adamw`` (betas .9/.999, eps 1e-8, as torch's defaults).
        momentum: of ``sgd``, in [0, 1): b ← momentum · b + g, and the step goes along b, as torch's ``SGD`` does.
        weight_decay: decoupled decay of ``adamw``.
        dropout: train with the model's own dropout.
        dtype: number format of the released tensors: ``float32``, ``bf16`` or ``fp16``.
        lora_rank: rank of the adapters that are trained, and shared, in the place of the model's own weights; 0 for none.
            ``lora_alpha``, ``lora_targets`` and ``lora_b_std`` are those of ``models.LoRA``.

    Raises:
        SpecError: for a value outside its range.
    """

    share: Literal["gradient", "delta"] = "gradient"
    steps: int = 1
    lr: float = 1e-3
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 0.01
    dropout: bool = False
    dtype: Literal["float32", "bf16", "fp16"] = "float32"
    lora_rank: int = 0
    lora_alpha: int | None = None
    lora_targets: Literal["attention", "query_value", "all"] = "attention"
    lora_b_std: float = 0.0
    epochs: int = 1
    mini_batch: int | None = None
    micro_batch: int | None = None
    momentum: float = 0.0

    def one_step(self) -> LocalTraining:
        """The gradient of one step on the whole batch, in the place of all the steps."""
        return replace(
            self, share="gradient", steps=1, epochs=1, mini_batch=None, optimizer="sgd", momentum=0.0, dtype="float32"
        )

    @property
    def plain(self) -> bool:
        """True if a step's gradient is that of the mean loss of all records, so that their order does not matter."""
        return self.mini_batch is None and self.micro_batch is None

    @property
    def single(self) -> bool:
        """True if what is shared comes from one gradient, whatever the number of records."""
        return self.steps == 1 and self.mini_batch is None

    def local_steps(self, records: int) -> int:
        """Optimizer steps on a batch of so many records."""
        return self.steps if self.mini_batch is None else self.epochs * math.ceil(records / self.mini_batch)

    @property
    def lora(self) -> LoRA | None:
        """The adapters to train; None to train the model's own weights."""
        if self.lora_rank == 0:
            return None
        return LoRA(rank=self.lora_rank, alpha=self.lora_alpha, targets=self.lora_targets, b_std=self.lora_b_std)

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("share", self.share, ("gradient", "delta")),
            ("optimizer", self.optimizer, ("sgd", "adamw")),
            ("dtype", self.dtype, tuple(DTYPES)),
        ):
            if value not in choices:
                raise SpecError(f"{name}={value!r} is not known. Choose one of: {', '.join(choices)}.")
        if self.steps < 1 or not self.lr > 0 or self.weight_decay < 0:
            raise SpecError(f"Local training needs steps ≥ 1, lr > 0 and weight_decay ≥ 0, got {self}.")
        if self.share == "gradient" and self.steps != 1:
            raise SpecError(
                f"A gradient is one step, got steps={self.steps}. Write --share 'delta(steps={self.steps})'."
            )
        self._check_batches()
        # Its own checks speak.
        _ = self.lora

    def check_stage(self, stage: TrainingStage) -> None:
        """Raises ``SpecError`` if a step's gradient is not that of the whole batch, which ``stage`` would replace."""
        if not self.plain:
            raise SpecError(
                f"{type(stage).__name__} replaces the aggregation of full-batch steps, and its privacy accounting counts "
                "those. Leave micro_batch and mini_batch out of --share."
            )

    def _check_batches(self) -> None:
        for name in ("mini_batch", "micro_batch"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise SpecError(f"{name}={size} must be at least 1 record. Leave it out for the whole batch.")
        if self.epochs < 1:
            raise SpecError(f"epochs={self.epochs} must be at least 1.")
        if self.share == "gradient" and self.mini_batch is not None:
            raise SpecError(
                "A gradient is one step on the whole batch and takes no mini_batch. Write --share "
                f"'delta(mini_batch={self.mini_batch})', or micro_batch={self.mini_batch} for gradient accumulation."
            )
        if self.mini_batch is None and self.epochs != 1:
            raise SpecError(
                f"epochs={self.epochs} needs a mini_batch. For full-batch steps write delta(steps={self.epochs})."
            )
        if self.mini_batch is not None and self.steps != 1:
            raise SpecError(
                f"mini_batch={self.mini_batch} counts epochs, not steps: got steps={self.steps}. Give epochs instead."
            )
        if self.mini_batch is not None and self.micro_batch is not None and self.micro_batch > self.mini_batch:
            raise SpecError(
                f"micro_batch={self.micro_batch} is larger than the step's mini_batch={self.mini_batch}. Leave it out."
            )
        if not 0 <= self.momentum < 1:
            raise SpecError(f"momentum={self.momentum} must lie in [0, 1).")
        if self.momentum > 0 and (self.share, self.optimizer) != ("delta", "sgd"):
            raise SpecError(f"momentum={self.momentum} belongs to SGD: write delta(optimizer=sgd, momentum=...).")
