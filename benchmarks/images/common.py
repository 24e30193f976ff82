"""What the image benchmarks share: a subject, an observation, an attack's outcome as numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from benchmarks.images.pictures import psnr
from gradleak.core.attack import Attack, Clock, Reconstruction
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

CLASSES = 10


def subject_of(kind: str, *, size: int, width: int, blocks: int, seed: int, heads: int = 3, patch: int = 16) -> Subject:
    """The Hugging Face class itself with random weights."""
    settings = {"image_size": size, "patch_size": patch, "hidden_size": width}
    settings |= {"num_hidden_layers": blocks, "num_attention_heads": heads}
    return load_subject(f"random:{kind}", settings=settings, classes=CLASSES, seed=seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One attack on one batch: PSNR of every private picture with the closest proposal, and what the attack said."""

    status: str
    psnr: tuple[float, ...]
    seconds: float
    certificate: float
    found: Reconstruction


def attack_on(
    subject: Subject, pixels: Tensor, attack: Attack, *, seed: int, chain: str = "none", dtype: str = "float32"
) -> Outcome:
    """An honest server, who knows the client but neither labels nor pictures. Labels are drawn."""
    training = LocalTraining(dtype=dtype)  # type: ignore[arg-type]
    channel = Channel(trainer=ClientTrainer(subject=subject, training=training), stages=catalogue.make_stages(chain))
    deployed = channel.deployed()
    labels = torch.randint(0, CLASSES, (len(pixels),), generator=derive(seed, "labels"))
    batch = Batch(inputs=pixels, mask=torch.ones(len(pixels), dtype=torch.bool), labels=labels)
    facts = {"subject": deployed.subject, "trainer": deployed, "stages": channel.stages, "batch_size": len(pixels)}
    update = channel.observe(batch, derive(seed, "channel"))
    started = time.process_time()
    found = attack(
        Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(seed, "attack"), clock=Clock()
    )
    seconds = time.process_time() - started
    best = tuple(max((psnr(truth, record) for record in found.records), default=0.0) for truth in pixels)
    return Outcome(
        status=found.status.name,
        psnr=best,
        seconds=seconds,
        certificate=math.nan if found.certificate is None else found.certificate,
        found=found,
    )


def interval_of_mean(values: Sequence[float]) -> str:
    """Mean and Student 95 % interval."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return f"{mean:.1f}"
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
    half = float(stats.t.ppf(0.975, count - 1)) * spread / math.sqrt(count)
    return f"{mean:.1f} ± {half:.1f}"


def interval_of_share(successes: int, trials: int) -> str:
    """Successes of trials, and the Clopper–Pearson 95 % interval."""
    low = 0.0 if successes == 0 else float(stats.beta.ppf(0.025, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(0.975, successes + 1, trials - successes))
    return f"{successes} of {trials} ({low:.2f}–{high:.2f})"
