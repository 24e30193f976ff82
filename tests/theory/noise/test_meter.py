"""The noise that the meter reads against the noise that was added, and what it makes of other tampering."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.theory.noise.meter import NoiseReading, Verdict, measure_noise

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}
MODELS = {"gpt2": "causal-lm", "mistral": "causal-lm", "qwen3": "causal-lm", "bert": "classification"}


@cache
def honest(model: str) -> tuple[Subject, Update]:
    subject = load_subject(f"random:{model}", loss=MODELS[model], settings=SMALL)
    ids = torch.randint(1, 250, (2, 9), generator=derive(0, "ids"))
    labels = torch.tensor([0, 1]) if subject.loss.name == "classification" else ids
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    return subject, ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "train"))


def read(model: str, chain: str, seed: int = 0) -> NoiseReading:
    subject, update = honest(model)
    rng = derive(seed, "stages")
    for stage in catalogue.make_stages(chain):
        update = stage.apply(update, rng)
    return measure_noise(update, subject)


@pytest.mark.parametrize("size", [1e-3, 1e-1, 1.0])
@pytest.mark.parametrize("model", MODELS)
def test_estimate_is_the_noise_that_was_added(model: str, size: float) -> None:
    """Within three standard deviations of the estimate, σ/√(2N): false alarm .3 % per case, seeds fixed."""
    subject, update = honest(model)
    attention = [t for name, t in update.items() if "att" in name and t.ndim == 2]
    std = size * float(torch.cat([t.flatten() for t in attention]).square().mean().sqrt())
    rng = derive(1, model, size)
    noisy = update.map(lambda _, t: t + std * torch.randn(t.shape, generator=rng))
    reading = measure_noise(noisy, subject)
    assert reading.verdict is Verdict.NOISY
    assert abs(reading.std / std - 1) < 3 / (2 * reading.equations) ** 0.5
    assert reading.p_value(std) > 0.003
    assert reading.p_value(2 * std) < 1e-6


def test_interval_covers_as_often_as_it_says() -> None:
    """200 releases of one update: a 95 % interval misses at most 20 times (false alarm 0.3 %), and not never."""
    subject, update = honest("gpt2")
    misses = 0
    names = [name for name in update if ".0.attn." in name]
    for seed in range(200):
        rng = derive(seed, "coverage")
        noisy = {name: update[name] + 0.01 * torch.randn(update[name].shape, generator=rng) for name in names}
        reading = measure_noise(noisy, subject)
        misses += not reading.low <= 0.01 <= reading.high
    assert 1 <= misses <= 20, misses


@pytest.mark.parametrize(
    ("chain", "wanted"),
    [
        ("none", Verdict.CLEAN),
        ("clip(max_norm=0.1)", Verdict.CLEAN),
        ("clip(max_norm=1.0)+gaussian(noise_multiplier=0.01)", Verdict.NOISY),
        ("prune(fraction=0.9, scope=tensor)", Verdict.PRUNED),
        ("sign()", Verdict.QUANTIZED),
        ("quantize(dtype=bf16)", Verdict.QUANTIZED),
        ("quantize(dtype=fp16)", Verdict.QUANTIZED),
        ("quantize(dtype=int8)", Verdict.QUANTIZED),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_verdicts(model: str, chain: str, wanted: Verdict) -> None:
    assert read(model, chain).verdict is wanted


def test_noise_released_in_a_short_format_is_noise() -> None:
    assert read("gpt2", "gaussian(std=0.001)+quantize(dtype=bf16)").verdict is Verdict.NOISY


def _scaled(update: Update) -> dict[str, Tensor]:
    return {name: 1.2 * t if ".0." in name and "c_proj" in name else t for name, t in update.items()}


def _copied(update: Update) -> dict[str, Tensor]:
    return {name: update[name.replace(".1.", ".0.")] if ".attn.c_attn" in name else t for name, t in update.items()}


def _noised_in_one_block(update: Update) -> dict[str, Tensor]:
    rng = derive(0, "forger")
    return {name: t + 0.01 * torch.randn(t.shape, generator=rng) if ".1." in name else t for name, t in update.items()}


@pytest.mark.parametrize("forge", [_scaled, _copied, _noised_in_one_block])
def test_forged_updates_are_not_taken_for_noise(forge) -> None:  # type: ignore[no-untyped-def]
    """One tensor scaled, one block's queries, keys and values copied from another, noise in one block only."""
    subject, update = honest("gpt2")
    assert measure_noise(forge(update), subject).verdict is Verdict.UNEVEN


def test_gradient_at_other_weights_is_not_honest_here() -> None:
    other = load_subject("random:gpt2", loss="causal-lm", settings=SMALL, seed=1)
    ids = torch.randint(1, 250, (2, 9), generator=derive(0, "ids"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    stale = ClientTrainer(subject=other, training=LocalTraining()).update(batch, derive(0, "train"))
    subject, _ = honest("gpt2")
    assert measure_noise(stale, other).verdict is Verdict.CLEAN
    assert measure_noise(stale, subject).verdict is not Verdict.CLEAN
