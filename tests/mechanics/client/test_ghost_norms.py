"""Norms and weighted sums without any example's own gradient, against the gradients themselves; and ``dpsgd`` on both ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import IGNORED, Batch, TrainingData
from gradleak.core.channel import Channel
from gradleak.core.rng import derive
from gradleak.defenses.dpsgd import DPSGD
from gradleak.mechanics.client.clipping import square_norms
from gradleak.mechanics.client.ghost_norms import GhostGradients
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

CASES = (
    ("gpt2", "causal-lm"),
    ("gpt2", "classification"),
    ("llama", "causal-lm"),
    ("gemma", "causal-lm"),
    ("opt", "causal-lm"),
    ("bert", "classification"),
    ("roberta", "masked-lm"),
    ("vit", "classification"),
)
LENGTH = 24
"""Tokens of a record: above 16, so that a square matrix of the toy is formed; below 64·16/24, so that others are not."""


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tiny(name: str, loss: str) -> Subject:
    settings: dict[str, object] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings |= {"image_size": 16, "patch_size": 8} if name == "vit" else {"vocab_size": 300}
    subject = load_subject(f"random:{name}", loss=loss, settings=settings, seed=0)
    subject.module.double()
    return subject


def records(subject: Subject) -> Batch:
    """Of unequal length, with repeated tokens: the parts of a tied table meet in the norm."""
    rng = torch.Generator().manual_seed(1)
    if subject.modality == "image":
        pixels = torch.rand(4, 3, 16, 16, generator=rng, dtype=torch.float64)
        return Batch(inputs=pixels, mask=torch.ones(4, dtype=torch.bool), labels=torch.arange(4) % 2)
    ids = torch.randint(10, 20, (4, LENGTH), generator=rng)
    mask = torch.ones(4, LENGTH, dtype=torch.bool)
    mask[1, 5:] = False
    labels = torch.arange(4) % 2
    if subject.loss.name != "classification":
        chosen = mask if subject.loss.name == "causal-lm" else mask & (torch.arange(LENGTH) % 3 == 1)
        labels = torch.where(chosen, ids, IGNORED)
    return Batch(inputs=ids, mask=mask, labels=labels)


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_norms_and_sums_are_those_of_whole_gradients(name: str, loss: str) -> None:
    """At weights that are not the model's own, as after a local step."""
    subject = tiny(name, loss)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    data = trainer.prepare(records(subject))
    rng = torch.Generator().manual_seed(2)
    weights = {n: (p + 0.05 * torch.randn(p.shape, generator=rng)).detach() for n, p in subject.trainable().items()}
    whole = trainer.example_gradients(weights, data)
    ghost = GhostGradients.of(subject, weights, data)
    assert ghost is not None
    # These two calculate their norms in float32 whatever the weights are, and a padded pass rounds otherwise than a cut one.
    exact = 1e-10 if name not in ("llama", "gemma") else 1e-6
    torch.testing.assert_close(ghost.square_norms(), square_norms(whole), rtol=exact, atol=0)
    by = torch.tensor([0.3, 0.0, 1.7, 1.0])
    scale = max(float(tensor.abs().max()) for tensor in whole.values())
    for key, tensor in ghost.weighted_sum(by).items():
        torch.testing.assert_close(tensor, torch.tensordot(by, whole[key], dims=1), rtol=0, atol=exact * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batches", ["poisson", "fixed"])
def test_dpsgd_releases_the_same_on_both_ways(
    monkeypatch: pytest.MonkeyPatch, batches: str, dtype: torch.dtype
) -> None:
    """Two local steps with sampling and noise: the same coins, the same noise, sums equal to 1e-5."""
    subject = tiny("gpt2", "causal-lm")
    subject.module.to(dtype)
    torch.set_default_dtype(dtype)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(share="delta", steps=2, lr=0.5))
    stage = DPSGD(max_norm=0.1, noise_multiplier=0.01, sampling_rate=0.5, batches=batches)  # pyright: ignore
    channel, batch = Channel(trainer=trainer, stages=(stage,)), records(subject)
    formed = []
    monkeypatch.setattr(ClientTrainer, "example_gradients", lambda *args: formed.append(args))
    ghost = channel.observe(batch, derive(3, "noise"))
    assert not formed
    monkeypatch.undo()

    def without(subject: Subject, weights: Mapping[str, Tensor], data: TrainingData) -> None:
        return None

    monkeypatch.setattr(GhostGradients, "of", staticmethod(without))
    whole = channel.observe(batch, derive(3, "noise"))
    scale = max(float(tensor.abs().max()) for tensor in whole.values())
    for name, tensor in ghost.items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-5 * scale)


def test_what_has_no_factors_is_left_to_the_slow_way() -> None:
    """Half precision, noisy layers, and a kind of module without a rule."""
    subject = tiny("bert", "classification")
    data = ClientTrainer(subject=subject, training=LocalTraining()).prepare(records(subject))
    weights = {name: p.detach() for name, p in subject.trainable().items()}
    half = {name: p.to(torch.bfloat16) for name, p in weights.items()}
    assert GhostGradients.of(subject, half, data) is None
    noisy = TrainingData(inputs=data.inputs, targets=data.targets, mask=data.mask, noise={"x": torch.zeros(4, 1)})
    assert GhostGradients.of(subject, weights, noisy) is None
    subject.module.get_submodule("bert.encoder.layer.0.output").register_parameter(
        "loose", torch.nn.Parameter(torch.zeros(3, 3))
    )
    assert GhostGradients.of(subject, {name: p.detach() for name, p in subject.trainable().items()}, data) is None
