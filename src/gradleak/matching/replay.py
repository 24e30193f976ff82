"""An attacker who knows the channel simulates it: candidate batches in, the updates that they would be released as
out, differentiable in the candidates. Every stage is modeled through its own surrogate. Must not know any attack or
defense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from gradleak.core.stage import ProtocolStage, ReleaseStage, Stage, TrainingStage
from gradleak.core.update import Update
from gradleak.mechanics.client.factored import simulate_gradients
from gradleak.mechanics.client.outer_products import FactoredMatrix, Simulated, scale, squared_norm
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.models.running.noise_inputs import noisy_layers

_TINY = torch.finfo(torch.float32).tiny


def studied(
    update: Update, stages: tuple[Stage, ...], trainer: ClientTrainer
) -> tuple[dict[str, Tensor], tuple[Stage, ...]]:
    """A release and the known stages after the attacker has looked at the one in the light of the other, last stage first."""
    released: Mapping[str, Tensor] = update.map(lambda _, tensor: tensor.float())
    known: list[Stage] = []
    for stage in reversed(stages):
        if isinstance(stage, ReleaseStage):
            stage, released = stage.studied(released, trainer)
        known.append(stage)
    return dict(released), tuple(reversed(known))


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """The channel as an informed attacker simulates it.

    Attributes:
        trainer: the local training, of the model as it is deployed.
        stages: those of the channel that the adversary knows, in order; empty for one who knows none.
        names: the tensors to simulate.
        released: the whole update as it was released, which stages may look at.
        share: norm of the simulated tensors in units of that of all released ones.
    """

    trainer: ClientTrainer
    stages: tuple[Stage, ...]
    names: tuple[str, ...]
    released: Mapping[str, Tensor]
    share: float

    @property
    def clients(self) -> int:
        """Over how many clients a candidate batch is dealt out."""
        return next((stage.clients() for stage in self.stages if isinstance(stage, ProtocolStage)), 1)

    def simulate(
        self,
        inputs: Num[Tensor, "restarts batch ..."],
        targets: Float[Tensor, "restarts batch ..."],
        mask: Bool[Tensor, "batch ..."],
        noise: Mapping[str, Float[Tensor, "restarts batch ..."]] = MappingProxyType({}),
    ) -> Simulated:
        """Candidate updates by name, in factors where nothing asks for dense tensors.

        Args:
            inputs: embeddings or pixels; or token ids, which bring the token table's gradient but no derivative.
            noise: what noisy layers of the model are assumed to have drawn; their mean if empty, and behind a protocol.
        """
        before, protocol, after = self._split()
        if protocol is None:
            return self._client(inputs, targets, mask, before, noise)
        clients = protocol.clients()
        parts = zip(
            inputs.tensor_split(clients, 1), targets.tensor_split(clients, 1), mask.tensor_split(clients), strict=True
        )
        updates = [self._dense(self._client(x, y, kept, before), inputs.shape[0]) for x, y, kept in parts]
        sizes = tuple(len(part) for part in mask.tensor_split(clients))
        joint = protocol.surrogate(
            {name: torch.stack([update[name] for update in updates], 1) for name in updates[0]}, sizes
        )
        for stage in after:
            joint = stage.surrogate(joint, self.released)
        return joint

    def _split(self) -> tuple[tuple[ReleaseStage, ...], ProtocolStage | None, tuple[ReleaseStage, ...]]:
        """The stages that need modeling before and after the protocol."""
        protocol = next((stage for stage in self.stages if isinstance(stage, ProtocolStage)), None)
        cut = len(self.stages) if protocol is None else self.stages.index(protocol)
        before, after = (
            tuple(s for s in part if isinstance(s, ReleaseStage) and not s.surrogate_is_identity())
            for part in (self.stages[:cut], self.stages[cut:])
        )
        return before, protocol, after

    def _client(
        self,
        inputs: Tensor,
        targets: Tensor,
        mask: Tensor,
        stages: tuple[ReleaseStage, ...],
        noise: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Simulated:
        simulated = self._trained(inputs, targets, mask, noise)
        while stages:
            # Stages that only rescale act on the factors; the first one that does more needs dense tensors.
            norm = squared_norm(simulated).clamp_min(_TINY).sqrt()
            factor = stages[0].rescale(norm, self.share)
            if factor is None:
                break
            simulated, stages = {name: scale(part, factor) for name, part in simulated.items()}, stages[1:]
        if not stages:
            return simulated
        dense = self._dense(simulated, inputs.shape[0])
        for stage in stages:
            dense = stage.surrogate(dense, self.released)
        return dense

    def _dense(self, simulated: Simulated, restarts: int) -> Mapping[str, Tensor]:
        dense = {name: part.dense() if isinstance(part, FactoredMatrix) else part for name, part in simulated.items()}
        # A parameter that broadcasts over records comes without its axis of one; stages look at shapes.
        return {name: part.reshape(restarts, *self.released[name].shape) for name, part in dense.items()}

    def _trained(self, inputs: Tensor, targets: Tensor, mask: Tensor, noise: Mapping[str, Tensor]) -> Simulated:
        """Local training: in one pass for all restarts where the factored gradients have a rule for every module."""
        restarts = inputs.shape[0]
        training = next((stage for stage in self.stages if isinstance(stage, TrainingStage)), None)
        follow = inputs.is_floating_point()
        local = self.trainer.training
        plain_layers = not noisy_layers(self.trainer.subject.module)
        if training is None and local.share == "gradient" and local.plain and follow and plain_layers:
            stacked = mask.repeat(restarts, *[1] * (mask.ndim - 1))
            gradients = simulate_gradients(
                self.trainer.subject,
                self.names,
                inputs.flatten(0, 1),
                targets.flatten(0, 1),
                stacked,
                restarts=restarts,
            )
            if gradients is not None:
                return gradients
        single = [
            self.trainer.replay(
                x, y, mask, stage=training, differentiable=follow, noise={n: drawn[row] for n, drawn in noise.items()}
            )
            for row, (x, y) in enumerate(zip(inputs, targets, strict=True))
        ]
        return {name: torch.stack([gradient[name] for gradient in single]) for name in self.names}
