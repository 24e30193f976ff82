"""What a matching attack minimizes over: the simulated client, what is known and what is searched.
Must not know how the search goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.specs import name_of
from gradleak.core.stage import DataStage, ProtocolStage, Stage
from gradleak.core.update import Update
from gradleak.matching import search_space
from gradleak.matching.objectives import Objective, Target
from gradleak.matching.optimizers import Optimizer, Stopping
from gradleak.matching.replay import Replay, studied
from gradleak.matching.search_space import SearchSpace, token_table
from gradleak.mechanics.client.outer_products import FactoredMatrix, Simulated
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.embeddings.labels import single_label
from gradleak.models.running.noise_inputs import noise_name, noisy_layers

_TARGET_SHARPNESS = 20.0
"""Inverse temperature of the nearest-token label estimate: a cosine lead of 0.3 gives e⁶ to one."""
NOISE_PREFIX = "noise of "
"""What the names of variables that stand for noise begin with."""
_NEGLIGIBLE = 1e-5
"""Tensors smaller than this share of the largest hold mostly rounding noise of the number format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matching:
    """The parts of a matching attack.

    Attributes:
        restarts: starts that are optimized together; screened: random starts of which the best are kept.
        total_variation: weight of the anisotropic total variation of pixels.
        labels: ``search`` optimizes soft labels even where they could be inferred; ``infer`` reads them first.
        space: ``span`` searches embeddings only where the first attention's gradients leave room (``search_space``).
        balance: every tensor is divided by its observed norm to this power: 0 matches the tensors as they are, 1 lets
            none count more than another.
        noise_penalty: weight of how far the average of every searched noise is from its mean.
    """

    objective: Objective
    optimizer: Optimizer
    stopping: Stopping
    restarts: int
    screened: int
    balance: float
    total_variation: float = 0.0
    labels: Literal["infer", "search"] = "infer"
    space: Literal["span", "all"] = "all"
    noise_penalty: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One observation, made ready to be matched.

    Attributes:
        replay: the channel as the adversary simulates it.
        observed: those released tensors that a replay can simulate, times their weights; weights: by name.
        noise: what noisy layers of the model draw for one batch, name → shape, to be searched along with the inputs; empty
            where the adversary does not know the stages or the update comes from several draws.
        guesses: the same of stages that change the data, by their name.
    """

    replay: Replay
    observed: Mapping[str, Tensor]
    weights: Mapping[str, float]
    batch_size: int
    mask: Bool[Tensor, "batch ..."]
    targets: Float[Tensor, "batch classes"] | None
    space: SearchSpace
    noise: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    guesses: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def trainer(self) -> ClientTrainer:
        return self.replay.trainer

    def inputs(self, u: Tensor) -> Tensor:
        return self.space.inputs(u)

    def simulate(
        self, inputs: Tensor, targets: Tensor, drawn: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Simulated:
        """Updates of candidate batches ``[restarts batch ...]``, as the adversary expects to see them released."""
        for stage in self.replay.stages:
            if isinstance(stage, DataStage) and (name := name_of(stage)) in self.guesses:
                draw = drawn[name] if name in drawn else torch.zeros(inputs.shape[0], *self.guesses[name])
                inputs, targets = stage.guessed(inputs, targets, draw)
        noise = {name: value for name, value in drawn.items() if name in self.noise}
        return self._weighted(self.replay.simulate(inputs, targets, self.mask, noise))

    def drawn(self, variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What noisy layers and stages on the data drew, according to the variables."""
        layers = noisy_layers(self.trainer.subject.module)
        names = {noise_name(path): layer for path, layer in layers.items()}
        noise = {name: names[name].relaxed(variables[NOISE_PREFIX + name]) for name in self.noise}
        return noise | {name: variables[NOISE_PREFIX + name] for name in self.guesses}

    def adapted(self) -> tuple[str, ...]:
        """The stages that this search models; one that changes the data and is neither searched nor without effect is not."""
        return tuple(
            name_of(stage)
            for stage in self.replay.stages
            if not isinstance(stage, DataStage) or stage.surrogate_is_identity() or name_of(stage) in self.guesses
        )

    def surprise(self, noise: Mapping[str, Tensor]) -> Tensor:
        """|average − mean| of what the layers drew, one value per restart, averaged over the layers; 0 without any."""
        means = {noise_name(path): layer.noise for path, layer in noisy_layers(self.trainer.subject.module).items()}
        parts = [(noise[name].flatten(1).mean(1) - means[name]).abs() for name in self.noise if name in noise]
        return torch.stack(parts).mean(0) if parts else torch.zeros(())

    def _weighted(self, simulated: Simulated) -> Simulated:
        return {
            name: part.scaled(self.weights[name]) if isinstance(part, FactoredMatrix) else part * self.weights[name]
            for name, part in simulated.items()
        }


def pose(update: Update, view: View, parts: Matching) -> Problem:
    """Reads the adversary's facts into a problem.

    Raises:
        NotApplicableError: for masked-LM losses (which positions were hidden is unknown to the adversary), or if the
            update holds none of the parameters that a replay can simulate.
    """
    trainer: ClientTrainer = view["trainer"]
    trainer.require_replay()
    subject = trainer.subject
    if subject.loss.hides_tokens:
        raise NotApplicableError(
            "Matching needs the positions that the masked-LM loss hid, which this adversary does not know."
        )
    batch_size = int(view["batch_size"])
    text = subject.modality == "text"
    mask = view.get("mask")
    if mask is None:
        if text and view.get("seq_len") is None:
            raise NotApplicableError(
                "Matching needs the padded length of the batch, which this adversary does not know."
            )
        mask = torch.ones((batch_size, int(view["seq_len"])) if text else (batch_size,), dtype=torch.bool)
    known = tuple(view.get("stages") or ())
    released, stages = studied(update, known, trainer)
    observed = _simulable(released, trainer, stages)
    guesses = _searched_draws(stages, batch_size)
    weights = _weights(observed, balance=parts.balance)
    if text:
        space = search_space.embeddings(view, token_table(subject), batch_size, mask.shape[1])
        if parts.space == "span" and not stages and trainer.training.plain and trainer.training.share == "gradient":
            space = search_space.within_span(space, subject, update)
    else:
        space = search_space.pixels((batch_size, *subject.pixel_shape), folded=bool(guesses))
    problem = Problem(
        replay=Replay(
            trainer=trainer,
            stages=stages,
            names=tuple(observed),
            released=released,
            share=Update(observed).norm() / max(Update(released).norm(), torch.finfo(torch.float32).tiny) or 1.0,
        ),
        observed=Target({name: tensor * weights[name] for name, tensor in observed.items()}),
        weights=weights,
        batch_size=batch_size,
        mask=mask,
        targets=_known_targets(update, view, trainer, search_labels=parts.labels == "search"),
        space=space,
        guesses=guesses,
    )
    return replace(problem, noise=_searched_noise(problem)) if stages and trainer.training.single else problem


def _searched_draws(stages: tuple[Stage, ...], batch_size: int) -> dict[str, tuple[int, ...]]:
    """The draws of stages on the data. Behind a protocol every client has its own, and none is searched."""
    if any(isinstance(stage, ProtocolStage) for stage in stages):
        return {}
    shapes = {name_of(stage): stage.unknowns(batch_size) for stage in stages if isinstance(stage, DataStage)}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _searched_noise(problem: Problem) -> dict[str, tuple[int, ...]]:
    start = problem.inputs(torch.zeros(problem.space.shape))
    targets = torch.zeros(problem.batch_size, problem.trainer.subject.classes)
    return problem.trainer.noise_shapes(TrainingData(inputs=start, targets=targets, mask=problem.mask))


def _simulable(update: Mapping[str, Tensor], trainer: ClientTrainer, stages: tuple[Stage, ...]) -> dict[str, Tensor]:
    """The released tensors to match: not the token table, which embeddings bypass, nor what the stages made misleading."""
    subject = trainer.subject
    skipped = frozenset().union(*(stage.ignored(trainer) for stage in stages))
    if subject.modality == "text":
        skipped |= {subject.anatomy.token_embedding}
    observed = {name: update[name] for name in trainer.names() if name in update and name not in skipped}
    if not observed:
        raise NotApplicableError("The update holds no parameter that a replay of the training can simulate.")
    return observed


def _weights(observed: Mapping[str, Tensor], *, balance: float) -> dict[str, float]:
    """‖g_l‖^-balance per tensor, in units of the largest; tensors that hold only rounding noise weigh nothing."""
    norms = {name: float(tensor.norm()) for name, tensor in observed.items()}
    largest = max(*norms.values(), torch.finfo(torch.float32).tiny)
    shares = {name: norm / largest for name, norm in norms.items()}
    return {name: share**-balance if share > _NEGLIGIBLE else 0.0 for name, share in shares.items()}


def _known_targets(update: Update, view: View, trainer: ClientTrainer, *, search_labels: bool) -> Tensor | None:
    subject = trainer.subject
    if not subject.loss.labels_records:
        return None
    labels = view.get("labels")
    if labels is None and not search_labels:
        label = single_label(update, subject.anatomy, batch_size=int(view["batch_size"]))
        labels = None if label is None else torch.tensor([label])
    return None if labels is None else subject.loss.targets(torch.as_tensor(labels), subject.classes)


def targets_of(problem: Problem, variables: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Label probabilities ``[restarts batch ...]``: known, searched, or (language modeling) the nearest tokens."""
    if problem.targets is not None:
        return problem.targets.expand(inputs.shape[0], *problem.targets.shape)
    if "labels" in variables:
        return torch.softmax(variables["labels"], dim=-1)
    subject = problem.trainer.subject
    table = token_table(subject)
    cosine = torch.nn.functional.normalize(inputs, dim=-1) @ torch.nn.functional.normalize(table, dim=-1).T
    return torch.softmax(_TARGET_SHARPNESS * cosine, dim=-1) * problem.mask.unsqueeze(-1)
