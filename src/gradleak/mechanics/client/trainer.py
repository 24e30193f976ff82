"""Local training as a map from a batch to an update, the same code for the client and for the attacker's replay.

The model is called through ``torch.func.functional_call``: it is never copied, and its weights never change.
Must not know any attack or defense.

Many gradients or losses in one pass are cheaper than one after the other, but a model that branches on its data
(experts, some encoders with padding) or brings a backward of its own cannot be vectorized. Asked in one place. Must not know what is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gradleak.core.batch import Batch, TrainingData
from gradleak.core.errors import ModelError, NotApplicableError
from gradleak.core.stage import ModelStage, NormStage, TrainingStage
from gradleak.core.update import Update
from gradleak.mechanics.client.ghost_norms import GhostGradients
from gradleak.mechanics.client.optimizers import Moments, optimizer_step
from gradleak.mechanics.client.settings import DTYPES, LocalTraining
from gradleak.models import Subject
from gradleak.models.running.noise_inputs import Noisy, listening, noise_name, noisy_layers

__all__ = ["DTYPES", "ClientTrainer", "LocalTraining"]


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

    def one_step(self) -> ClientTrainer:
        """The gradient of one step on the whole batch, in the place of the local training."""
        return replace(self, training=self.training.one_step())

    def prepare(self, batch: Batch) -> TrainingData:
        """The batch as it is trained on, with one-hot targets."""
        targets = self.subject.loss.targets(batch.labels, self.subject.classes)
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
            part = self.with_noise(part, rng)
            if stage is None:
                return self._accumulated(weights, part, differentiable=False)
            return self._aggregated(weights, part, stage, round * self.training.steps + step, rng)

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
        noise: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """The update of a candidate batch as a differentiable function of it.

        Args:
            inputs: embeddings ``[batch seq model]``, pixels ``[batch channels height width]``, or token ids ``[batch seq]``.
            targets: label probabilities ``[batch classes]`` or ``[batch seq vocab]``.
            mask: ``[batch seq]``, or ``[batch]`` for images.
            stage: simulated through its surrogate, in the client's first round.
            differentiable: keep the graph; without it only the values are wanted.
            noise: what the model's noisy layers are assumed to have drawn, the same in every step; their mean if empty.

        Returns:
            name → tensor; the token embedding, which embeddings bypass, then holds only its output-side part, if any.

        Raises:
            NotApplicableError: if only the first blocks of the model were loaded, or the client drew mini-batches.
            SpecError: if a ``stage`` meets micro-batches.
        """
        self.require_replay()
        if stage is not None:
            self.training.check_stage(stage)
        data = TrainingData(inputs=inputs, targets=targets, mask=mask, noise=noise)

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
        lengths = _ends(data.mask) if data.mask.ndim == 2 else [None] * data.size
        groups = [[place] for place in range(data.size)]
        if not differentiable:
            groups = [[p for p, own in enumerate(lengths) if own == length] for length in dict.fromkeys(lengths)]
        parts: list[Mapping[str, Tensor]] = []
        for places in groups:
            group = _cut(data, places, lengths[places[0]], targets_too=not self.subject.loss.labels_records)
            # Padding in front cannot be cut off, and takes a mask.
            masked = data.mask.ndim == 2 and not bool(group.mask[:, 0].all())
            together = None if differentiable or masked else self._vectorized(weights, group)
            parts.append(together or self._one_by_one(weights, group, differentiable=differentiable))
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
        """The mean loss, penalties of noisy layers included, differentiable in weights, data and noise."""
        return self._loss(data, weights, data.mask)

    def _loss(self, data: TrainingData, weights: Mapping[str, Tensor] | None, mask: Tensor | None) -> Tensor:
        given = {self._key(data.inputs): data.inputs}
        if not noisy_layers(self.subject.module):
            logits = self.subject.logits(weights, mask=mask, **given)
            return self.subject.loss.per_group(logits, data.targets).sum()
        penalties: list[Tensor] = []

        def hear(path: str, layer: Noisy, x: Tensor) -> None:
            penalty = layer.penalty(x)
            if penalty is not None:
                penalties.append(penalty.mean())

        with listening(self.subject.module, hear):
            logits = self.subject.logits({**(weights or {}), **data.noise}, mask=mask, **given)
        return self.subject.loss.per_group(logits, data.targets).sum() + sum(penalties)

    def noise_shapes(self, data: TrainingData) -> dict[str, tuple[int, ...]]:
        """Name and shape of what the model's noisy layers draw for ``data``; empty for a model without any."""
        shapes: dict[str, tuple[int, ...]] = {}
        if not noisy_layers(self.subject.module):
            return shapes

        def hear(path: str, layer: Noisy, x: Tensor) -> None:
            shapes[noise_name(path)] = layer.noise_shape(x)

        with torch.no_grad(), listening(self.subject.module, hear):
            _ = self.subject.logits(None, mask=data.mask, **{self._key(data.inputs): data.inputs})
        return shapes

    def with_noise(self, data: TrainingData, rng: torch.Generator) -> TrainingData:
        """The data with a new draw of every noisy layer; as it is for a model without any."""
        shapes = self.noise_shapes(data)
        if not shapes:
            return data
        layers = noisy_layers(self.subject.module)
        drawn = {noise_name(path): layer.draw(shapes[noise_name(path)], rng) for path, layer in layers.items()}
        return replace(data, noise=drawn)

    def _aggregated(
        self,
        weights: Mapping[str, Tensor],
        data: TrainingData,
        stage: TrainingStage,
        iteration: int,
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """What ``stage`` makes of the examples' gradients, none of which is formed if it needs their norms alone.

        Dropout draws for each example of a pass, so with it every example goes through a pass of its own.
        """
        if isinstance(stage, NormStage) and not self.training.dropout:
            ghost = GhostGradients.of(self.subject, weights, data)
            by = None if ghost is None else stage.weights(ghost.square_norms(), iteration, rng)
            if ghost is not None and by is not None:
                return stage.finish(ghost.weighted_sum(by), data.size, iteration, rng)
        return stage.aggregate(self.example_gradients(weights, data), iteration, rng)

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
            gradient = self._gradient(weights, part, differentiable=differentiable)
            total = {name: tensor + gradient[name] for name, tensor in total.items()}
        return {name: tensor / len(parts) for name, tensor in total.items()}

    def _gradient(
        self, weights: Mapping[str, Tensor], data: TrainingData, *, differentiable: bool
    ) -> dict[str, Tensor]:
        leaves = {n: w if w.requires_grad else w.detach().requires_grad_() for n, w in weights.items()}
        gradients = torch.autograd.grad(
            self.loss(data, leaves),
            list(leaves.values()),
            create_graph=differentiable,
            allow_unused=True,
            materialize_grads=True,
        )
        return dict(zip(leaves, gradients, strict=True))

    def _one_by_one(
        self, weights: Mapping[str, Tensor], data: TrainingData, *, differentiable: bool
    ) -> dict[str, Tensor]:
        length = data.mask.shape[1] if data.mask.ndim == 2 else None
        gradients = [
            self._gradient(weights, _cut(data, [place], length, targets_too=False), differentiable=differentiable)
            for place in range(data.size)
        ]
        return {name: torch.stack([gradient[name] for gradient in gradients]) for name in weights}

    def _vectorized(self, weights: Mapping[str, Tensor], data: TrainingData) -> dict[str, Tensor] | None:
        """None if the model branches on its data, as one with experts does."""

        def loss(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
            drawn_noise = {name: drawn.unsqueeze(0) for name, drawn in noise.items()}
            example = TrainingData(inputs=x.unsqueeze(0), targets=y.unsqueeze(0), mask=data.mask[:1], noise=drawn_noise)
            # The examples of a group have one length: without a mask the model does not branch on data.
            return self._loss(example, parameters, None)

        arguments = (dict(weights), data.inputs, data.targets, dict(data.noise))
        return vectorized(torch.func.grad(loss), *arguments, in_dims=(None, 0, 0, 0))

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
            moments: Moments = {}
            for step, part in enumerate(parts):
                weights = optimizer_step(self.training, weights, gradient(weights, part, step), moments, step + 1)
            return {name: weights[name] - start[name] for name in start}


def _ends(mask: Tensor) -> list[int]:
    """The number of positions up to each record's last real token."""
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).tolist()


def _cut(data: TrainingData, places: list[int], length: int | None, *, targets_too: bool) -> TrainingData:
    """Some records, without the padding behind their common length."""
    inputs, targets, mask = data.inputs[places], data.targets[places], data.mask[places]
    noise = {name: drawn[places] for name, drawn in data.noise.items()}
    if length is not None:
        padded = mask.shape[1]
        inputs, mask = inputs[:, :length], mask[:, :length]
        targets = targets[:, :length] if targets_too else targets
        noise = {
            n: drawn[:, :length] if drawn.shape[1] == padded and drawn.ndim > 2 else drawn for n, drawn in noise.items()
        }
    return TrainingData(inputs=inputs, targets=targets, mask=mask, noise=noise)


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


def vectorized(function: Callable[..., Any], *arguments: Any, in_dims: Any = 0) -> Any | None:
    """``torch.func.vmap`` of ``function`` on ``arguments``; None if that cannot be done, and it has to be called one by one."""
    try:
        return torch.func.vmap(function, in_dims=in_dims, randomness="different")(*arguments)
    except RuntimeError as error:
        # torch has no type of its own for this; its message names the transforms.
        if not any(word in str(error) for word in ("vmap", "functorch")):
            raise
        return None
