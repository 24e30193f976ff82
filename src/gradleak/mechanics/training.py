"""Why: local training as a map from a batch to an update, the same code for the client and for the attacker's replay.

The model is called through ``torch.func.functional_call``: it is never copied, and its weights never change.
Must not know any attack or defense.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gradleak.core.batch import Batch, TrainingData, soft_labels
from gradleak.core.errors import ModelError, NotApplicableError, SpecError
from gradleak.core.stage import ModelStage, TrainingStage
from gradleak.core.update import Update
from gradleak.mechanics.losses import group_losses
from gradleak.models import LoRA, Subject

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ADAM_BETAS, _ADAM_EPS = (0.9, 0.999), 1e-8


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTrainer:
    """Local training of one subject: implements ``core.channel.Trainer``. Holds no data."""

    subject: Subject
    training: LocalTraining

    def names(self) -> tuple[str, ...]:
        """Parameters that are trained, hence shared. Raises ``ModelError`` if there are none."""
        names = tuple(self.subject.trainable())
        if not names:
            raise ModelError("No parameter of the model is trainable, so nothing would be shared. Set requires_grad.")
        return names

    def require_replay(self) -> None:
        """Raises ``NotApplicableError`` if this client cannot be replayed: only the first blocks of the model are here, or
        its mini-batches came in an order that only its own generator knows."""
        if self.training.mini_batch is not None:
            raise NotApplicableError(
                "This attack replays the client's training, and the client drew the order of its mini-batches itself. "
                "Audit full-batch steps, delta(steps=...), to see what a replay would find."
            )
        extent = self.subject.extent
        if extent is not None:
            raise NotApplicableError(
                f"This attack replays the client's training, and only the first {extent.blocks} of {extent.of_blocks} blocks "
                "of the model were loaded. Load the whole model (leave --first-blocks out)."
            )

    def deploy(self, stages: tuple[ModelStage, ...]) -> ClientTrainer:
        """The same training of the model as these stages change it, one after the other."""
        subject = self.subject
        for stage in stages:
            subject = stage.change(subject)
        return replace(self, subject=subject)

    def prepare(self, batch: Batch) -> TrainingData:
        """The batch as it is trained on, with one-hot targets."""
        targets = soft_labels(batch.labels, self.subject.classes)
        return TrainingData(inputs=batch.inputs, targets=targets, mask=batch.mask)

    def update(self, batch: Batch, rng: torch.Generator) -> Update:
        """Trains on ``batch`` and returns what is shared, in the release's number format.

        Raises:
            DataError: if the result holds NaN or infinite entries.
        """
        return self.train(self.prepare(batch), rng)

    def train(
        self, data: TrainingData, rng: torch.Generator, *, stage: TrainingStage | None = None, round: int = 0
    ) -> Update:
        """As ``update``, on data that earlier stages may have changed.

        Args:
            stage: what makes a step's gradient out of the examples' own; the plain gradient if None.
            round: earlier rounds of this client, which schedules of ``stage`` count from.

        Raises:
            DataError: if the result holds NaN or infinite entries.
            SpecError: if a ``stage`` meets micro- or mini-batches.
        """
        if stage is not None:
            self.training.check_stage(stage)

        def gradient(weights: Mapping[str, Tensor], part: TrainingData, step: int) -> dict[str, Tensor]:
            if stage is None:
                return self._accumulated(weights, part, differentiable=False)
            iteration = round * self.training.steps + step
            return stage.aggregate(self.example_gradients(weights, part), iteration, rng)

        with _dropout(self, rng):
            tensors = self._steps(gradient, self._parts(data, rng))
        return Update({name: tensor.to(DTYPES[self.training.dtype]) for name, tensor in tensors.items()})

    def replay(
        self,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        *,
        stage: TrainingStage | None = None,
        differentiable: bool = True,
    ) -> dict[str, Tensor]:
        """The update of a candidate batch as a differentiable function of it.

        Args:
            inputs: embeddings ``[batch seq model]``, pixels ``[batch channels height width]``, or token ids ``[batch seq]``.
            targets: label probabilities ``[batch classes]`` or ``[batch seq vocab]``.
            mask: ``[batch seq]``, or ``[batch]`` for images.
            stage: simulated through its surrogate, in the client's first round.
            differentiable: keep the graph; without it only the values are wanted.

        Returns:
            name → tensor; the token embedding, which embeddings bypass, then holds only its output-side part, if any.

        Raises:
            NotApplicableError: if only the first blocks of the model were loaded, or the client drew mini-batches.
            SpecError: if a ``stage`` meets micro-batches.
        """
        self.require_replay()
        if stage is not None:
            self.training.check_stage(stage)
        data = TrainingData(inputs=inputs, targets=targets, mask=mask)

        def gradient(weights: Mapping[str, Tensor], part: TrainingData, step: int) -> dict[str, Tensor]:
            if stage is None:
                return self._accumulated(weights, part, differentiable=differentiable)
            return dict(stage.surrogate(self.example_gradients(weights, part, differentiable=differentiable), step))

        return self._steps(gradient, itertools.repeat(data, self.training.steps))

    def example_gradients(
        self, weights: Mapping[str, Tensor], data: TrainingData, *, differentiable: bool = False
    ) -> dict[str, Tensor]:
        """The gradient of every example's own mean loss: name → ``[batch ...]``.

        Examples of one length are cut to it and go through one vectorized pass, so that the model never sees a mask.

        Args:
            differentiable: let the result be differentiated in the data; one example after the other, because under
                ``torch.func.vmap`` the gradients of lookup tables lose their derivative (torch 2.13).
        """
        lengths = data.mask.sum(1).tolist() if data.mask.ndim == 2 else [None] * data.size
        groups = [[place] for place in range(data.size)]
        if not differentiable:
            groups = [[p for p, own in enumerate(lengths) if own == length] for length in dict.fromkeys(lengths)]
        parts: list[Mapping[str, Tensor]] = []
        for places in groups:
            group = _cut(data, places, lengths[places[0]], targets_too=self.subject.loss != "classification")
            if differentiable:
                one = self._gradient(weights, group, differentiable=True)
                parts.append({name: tensor.unsqueeze(0) for name, tensor in one.items()})
            else:
                parts.append(self._vectorized(weights, group))
        back = torch.tensor([place for places in groups for place in places]).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in weights}

    def idle(self, name: str, records: int | None = None) -> Tensor | float:
        """What would be shared of a parameter if its gradient were zero throughout (weight decay moves it still).

        Args:
            records: of the client's batch, which tells the number of mini-batch steps.

        Raises:
            NotApplicableError: if the number of steps depends on it and it is not given.
        """
        t = self.training
        if t.share == "gradient" or t.optimizer != "adamw" or t.weight_decay == 0.0:
            return 0.0
        if t.mini_batch is not None and records is None:
            raise NotApplicableError(
                "The decay of AdamW over mini-batches depends on the number of steps, and the batch size is not known."
            )
        weight = self.subject.module.get_parameter(name).detach()
        return weight * ((1.0 - t.lr * t.weight_decay) ** t.local_steps(records or 0) - 1.0)

    def loss(self, data: TrainingData, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The mean loss, differentiable in weights and data."""
        logits = self.subject.logits(weights, mask=data.mask, **{self._key(data.inputs): data.inputs})
        return group_losses(logits, data.targets, self.subject.loss).sum()

    def _key(self, inputs: Tensor) -> str:
        if self.subject.modality == "image":
            return "pixels"
        return "embeddings" if inputs.is_floating_point() else "inputs"

    def _parts(self, data: TrainingData, rng: torch.Generator) -> Iterator[TrainingData]:
        """What each optimizer step is taken on."""
        t = self.training
        if t.mini_batch is None:
            yield from itertools.repeat(data, t.steps)
            return
        for _ in range(t.epochs):
            for places in torch.randperm(data.size, generator=rng).split(t.mini_batch):
                yield _cut(data, places.tolist(), None, targets_too=False)

    def _accumulated(
        self, weights: Mapping[str, Tensor], data: TrainingData, *, differentiable: bool
    ) -> dict[str, Tensor]:
        """The mean over micro-batches of their mean gradients."""
        size = self.training.micro_batch
        if size is None or size >= data.size:
            return self._gradient(weights, data, differentiable=differentiable)
        parts = [_cut(data, p.tolist(), None, targets_too=False) for p in torch.arange(data.size).split(size)]
        total = self._gradient(weights, parts[0], differentiable=differentiable)
        for part in parts[1:]:
            found = self._gradient(weights, part, differentiable=differentiable)
            total = {name: tensor + found[name] for name, tensor in total.items()}
        return {name: tensor / len(parts) for name, tensor in total.items()}

    def _gradient(
        self, weights: Mapping[str, Tensor], data: TrainingData, *, differentiable: bool
    ) -> dict[str, Tensor]:
        leaves = {n: w if w.requires_grad else w.detach().requires_grad_() for n, w in weights.items()}
        found = torch.autograd.grad(
            self.loss(data, leaves),
            list(leaves.values()),
            create_graph=differentiable,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(leaves, found, strict=True))

    def _vectorized(self, weights: Mapping[str, Tensor], data: TrainingData) -> dict[str, Tensor]:
        key = self._key(data.inputs)

        def loss(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            logits = self.subject.logits(parameters, **{key: x.unsqueeze(0)})
            return group_losses(logits, y.unsqueeze(0), self.subject.loss).sum()

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")
        return each(dict(weights), data.inputs, data.targets)

    def _steps(
        self,
        gradient: Callable[[Mapping[str, Tensor], TrainingData, int], dict[str, Tensor]],
        parts: Iterable[TrainingData],
    ) -> dict[str, Tensor]:
        start = {name: self.subject.module.get_parameter(name).detach() for name in self.names()}
        with torch.enable_grad():
            if self.training.share == "gradient":
                return gradient(start, next(iter(parts)), 0)
            weights: dict[str, Tensor] = start
            moments: dict[str, tuple[Tensor, Tensor]] = {}
            for step, part in enumerate(parts):
                weights = self._step(weights, gradient(weights, part, step), moments, step + 1)
            return {name: weights[name] - start[name] for name in start}

    def _step(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        moments: dict[str, tuple[Tensor, Tensor]],
        step: int,
    ) -> dict[str, Tensor]:
        t = self.training
        if t.optimizer == "sgd":
            along = dict(gradients)
            if t.momentum > 0:
                along = {n: g + t.momentum * moments[n][0] if n in moments else g for n, g in along.items()}
                moments.update({n: (b, b) for n, b in along.items()})
            return {name: weight - t.lr * along[name] for name, weight in weights.items()}
        new: dict[str, Tensor] = {}
        first, second = _ADAM_BETAS
        for name, weight in weights.items():
            g = gradients[name]
            m, v = moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
            m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
            moments[name] = (m, v)
            # The tiny term keeps the square root differentiable where a gradient is exactly zero.
            scale = (v / (1 - second**step) + torch.finfo(g.dtype).tiny).sqrt() + _ADAM_EPS
            new[name] = weight * (1 - t.lr * t.weight_decay) - t.lr * (m / (1 - first**step)) / scale
        return new


def _cut(data: TrainingData, places: list[int], length: int | None, *, targets_too: bool) -> TrainingData:
    """Some records, without the padding behind their common length."""
    inputs, targets, mask = data.inputs[places], data.targets[places], data.mask[places]
    if length is not None:
        inputs, mask = inputs[:, :length], mask[:, :length]
        targets = targets[:, :length] if targets_too else targets
    return TrainingData(inputs=inputs, targets=targets, mask=mask)


@contextmanager
def _dropout(trainer: ClientTrainer, rng: torch.Generator) -> Iterator[None]:
    """Dropout layers on, if asked, with masks drawn from ``rng``; the model is left as it was found."""
    if not trainer.training.dropout:
        yield
        return
    module = trainer.subject.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        module.train()
        try:
            yield
        finally:
            module.eval()
