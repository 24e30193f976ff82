"""Fed-SDP: rounds are counted, and noise may be the server's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel, Memory
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.core.update import Update
from gradleak.defenses.fed_sdp import FedSDP
from gradleak.privacy.claim import claim

pytestmark = pytest.mark.contract


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_fed_sdp_leaves_the_noise_to_the_server_if_told() -> None:
    update = Update({"w": 10.0 * torch.ones(4, 100)})
    client = Client(batch=None, data=None, trainer=None)  # type: ignore[arg-type]
    quiet, _ = FedSDP(max_norm=1.0, noise_multiplier=1.0, noise_by="server").apply(update, client, rng())
    assert quiet.norm() == pytest.approx(1.0, rel=1e-6) and quiet.norm() <= 1.0
    noisy, _ = FedSDP(max_norm=1.0, noise_multiplier=1.0).apply(update, client, rng())
    assert float(noisy["w"].std()) == pytest.approx(1.0, rel=0.15)
    found = claim((FedSDP(max_norm=1.0, noise_multiplier=1.0, noise_by="server"),))
    assert found["epsilon"] is None and "server adds the noise" in found["statement"]


def test_fed_sdp_counts_rounds() -> None:
    class Still:
        """A trainer whose update is always the same."""

        def deploy(self, stages: Any) -> Still:
            return self

        def prepare(self, batch: Batch) -> Any:
            return None

        def train(self, data: Any, rng: torch.Generator, *, stage: Any = None, round: int = 0) -> Update:
            return Update({"w": torch.zeros(20_000)})

    stage = FedSDP(max_norm=1.0, noise_multiplier=10.0, schedule="linear", horizon=10)
    channel = Channel(trainer=Still(), stages=(stage,))  # type: ignore[arg-type]
    batch = Batch(inputs=torch.ones(1, 2).long(), mask=torch.ones(1, 2).bool(), labels=torch.zeros(1).long())
    memory, spreads = Memory(), []
    for _ in range(3):
        update, memory = channel.client(batch, memory, derive(0, "round", memory.rounds))
        spreads.append(float(update["w"].std()))
    assert spreads == pytest.approx([10 * (1 - 10.15 / 15 * t / 10) for t in range(3)], rel=0.03)
