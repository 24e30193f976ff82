"""Client-level privacy, one clip and one noise for a client's whole update; it says who may see what. Must not compute ε: it
describes itself, the accountant decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gradleak.core.stage import Client, ClientStage, Run, State
from gradleak.core.update import Update
from gradleak.defenses._noisy import check_schedule
from gradleak.defenses._tensors import require
from gradleak.mechanics.client.clipping import ClipExample, NoisySum
from gradleak.mechanics.client.noise_schedules import Schedule, relative_noise


@dataclass(frozen=True, kw_only=True, slots=True)
class FedSDP(ClientStage):
    """Clips the client's whole update and adds noise once per round, at the client or, later, at the server.

        released = u·min(1, C/‖u‖) + σ(round)·C·N(0, I)

    With ``noise_by=server`` what leaves the client is the clipped update alone, and the server adds the noise to the
    average; a curious server has then seen the update.

    Args:
        max_norm: C, positive.
        noise_multiplier: σ(0), at least 0.
        noise_by: "client" or "server".
        schedule: "fixed", "linear", "staircase", "exponential" or "cyclic", over rounds; see ``mechanics.schedules``.
        horizon: rounds that the schedule is spread over.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        With the noise at the client, one release is the Gaussian mechanism with multiplier σ for the client's whole data.
        With the noise at the server there is no guarantee against the server, and none is claimed.
        What happens during local training is not protected; see ``fed_cdp``.

    Source: Wei et al., arXiv 2107.01154, for the name; McMahan et al., arXiv 1710.06963, for the mechanism.
    Deviations: noise at the client is the default; the published method adds it at the server.
    """

    summary: ClassVar[str] = (
        "Fed-SDP: clips the client's whole update and adds noise once per round, here or at the server."
    )

    max_norm: float
    noise_multiplier: float
    noise_by: Literal["client", "server"] = "client"
    schedule: Schedule = "fixed"
    horizon: int = 100

    def __post_init__(self) -> None:
        check_schedule("fed_sdp", self.noise_multiplier, self.schedule, self.horizon)
        require(math.isfinite(self.max_norm) and self.max_norm > 0, "fed_sdp", "max_norm", self.max_norm, "positive")
        require(self.noise_by in ("client", "server"), "fed_sdp", "noise_by", self.noise_by, "client or server")

    def mechanism(self, round: int) -> NoisySum:
        """What runs and what is described in one round: one object. The update is the one row of its sum."""
        sigma = self.noise_multiplier * relative_noise(self.schedule, round, self.horizon)
        return NoisySum(clipping=ClipExample(max_norm=self.max_norm), noise_multiplier=sigma)

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        row = {name: _wide(tensor).unsqueeze(0) for name, tensor in update.items()}
        mechanism = self.mechanism(client.round)
        released = mechanism.without_noise(row, 1.0) if self.noise_by == "server" else mechanism(row, 1.0, rng)
        return update.map(lambda name, tensor: released[name].to(tensor.dtype)), {}

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        # The restarts axis is the row axis: every candidate is clipped by itself.
        return self.mechanism(0).clipping({name: _wide(tensor) for name, tensor in simulated.items()})

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float:
        return 0.0 if self.noise_by == "server" else self.noise_multiplier * self.max_norm

    def describe(self, run: Run) -> Mapping[str, Any]:
        # The row of this sum is a client, so what the mechanism calls an example is the whole update.
        plan = self.mechanism(run.round).describe(run.tensors)
        return plan | {"clip": "update", "sampled": "clients", "relation": "zero_out", "noise_by": self.noise_by}


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
