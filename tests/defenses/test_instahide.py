"""InstaHide is MixUp with fair signs, and many encodings give the pictures away."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses._mixing import mixing_weights
from gradleak.defenses.instahide import Instahide
from gradleak.defenses.mixup import Mixup
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECOYS = 24


@pytest.fixture(scope="module")
def trainer() -> ClientTrainer:
    subject = load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4})
    return ClientTrainer(subject=subject, training=LocalTraining())


def pixels_of(trainer: ClientTrainer, seed: int) -> Tensor:
    return torch.rand(4 + DECOYS, *trainer.subject.pixel_shape, generator=derive(seed, "pixels"))


def client_of(trainer: ClientTrainer, seed: int = 0, size: int = 4) -> Client:
    pixels = pixels_of(trainer, seed)[:size]
    batch = Batch(inputs=pixels, mask=torch.ones(size, dtype=torch.bool), labels=torch.arange(size) % 2)
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer)


def test_instahide_is_mixup_with_fair_signs(trainer: ClientTrainer) -> None:
    """768 coins: their mean is within five standard errors of 1/2 (false alarm below 1e-6)."""
    client = client_of(trainer)
    plain, hidden = (stage.apply(client, derive(1, "mix")).inputs - 0.5 for stage in (Mixup(), Instahide()))
    torch.testing.assert_close(hidden.abs(), plain.abs(), atol=1e-6, rtol=0)
    kept = (hidden.sign() == plain.sign()).double()
    assert kept.numel() == 768 and float(kept.mean()) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(768))
    assert float(hidden.abs().max()) <= 0.5


def encoded(trainer: ClientTrainer, client: Client, epochs: int) -> tuple[Tensor, Tensor]:
    """Magnitudes of what InstaHide trains on, epoch by epoch, and the weights of the mixtures."""
    magnitudes, weights = [], []
    for epoch in range(epochs):
        found = Instahide().apply(client, derive(epoch, "encode")).inputs
        magnitudes.append((found.double() - 0.5).abs().flatten(1))
        weights.append(mixing_weights(client.batch.size, 4, 0.65, derive(epoch, "encode")))
    return torch.cat(magnitudes), torch.cat(weights)


def decode(magnitudes: Tensor, weights: Tensor, rng: torch.Generator) -> Tensor:
    """|x − 1/2| of every record from |Σ λ (x − 1/2)| of many mixtures: signs and pictures in turn, from many starts."""
    back, pixels = torch.linalg.pinv(weights), magnitudes.shape[1]
    best, kept = torch.full((pixels,), math.inf, dtype=torch.float64), torch.zeros(weights.shape[1], pixels).double()
    for _ in range(60):
        guess = torch.randn(weights.shape[1], pixels, generator=rng, dtype=torch.float64)
        for _ in range(60):
            guess = back @ ((weights @ guess).sign() * magnitudes)
        error = ((weights @ guess).abs() - magnitudes).square().sum(0)
        kept = torch.where(error < best, guess, kept)
        best = torch.minimum(error, best)
    return kept.abs()


def test_many_encodings_give_the_pictures_away(trainer: ClientTrainer) -> None:
    """The known break (2011.05315), its last step: with the mixtures known, six encodings of each of eight pictures determine
    every pixel up to its reflection at mid-gray. One encoding of each does not.
    """
    client = client_of(trainer, size=8)
    truth = (client.batch.inputs.double() - 0.5).abs().flatten(1)
    shares = {}
    for epochs in (1, 6):
        found = decode(*encoded(trainer, client, epochs), derive(0, "decode"))
        shares[epochs] = float(((found - truth).abs() < 1e-5).all(0).double().mean())
    assert shares[6] > 0.9 and shares[1] < 0.2
