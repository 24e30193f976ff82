"""Small vision transformers, photographs and observations of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from gradleak.core.attack import Attack, Reconstruction
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def vision_subject(kind: str = "vit", *, size: int = 32, classes: int = 10, seed: int = 0, **settings: Any) -> Subject:
    """A random model of two blocks, patch 8 and width 96 unless set otherwise."""
    chosen = {"image_size": size, "patch_size": 8, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    return load_subject(f"random:{kind}", settings=chosen | settings, classes=classes, seed=seed)


def photographs(size: int, count: int = 1, *, first: int = 0) -> Tensor:
    """Photographs of scikit-image, their central squares scaled to ``size``."""
    made = []
    for name in PHOTOGRAPHS[first : first + count]:
        image = Image.fromarray(np.asarray(getattr(data, name)()))
        side = min(image.size)
        left, top = ((extent - side) // 2 for extent in image.size)
        cut = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        made.append(torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255.0).permute(2, 0, 1))
    return torch.stack(made)


def observe_pictures(
    subject: Subject, pixels: Tensor, *, chain: str = "none", known: dict[str, Any] | None = None, **training: Any
) -> Observation:
    """What is released, and an adversary who knows the client but no labels; ``known`` replaces facts (None: unknown)."""
    trainer = ClientTrainer(subject=subject, training=LocalTraining(**training))
    channel = Channel(trainer=trainer, stages=catalogue.make_stages(chain))
    labels = torch.arange(len(pixels)) % subject.classes
    batch = Batch(inputs=pixels, mask=torch.ones(len(pixels), dtype=torch.bool), labels=labels)
    deployed = channel.deployed()
    facts = {
        "subject": deployed.subject,
        "trainer": deployed,
        "stages": channel.stages,
        "batch_size": len(pixels),
    }
    return Observation(
        update=channel.observe(batch, derive(0, "vision")), knowledge=Knowledge(facts=facts | (known or {}))
    )


def run_on(attack: Attack, observation: Observation, seed: int = 0, **options: Any) -> Reconstruction:
    return attack(observation, rng=derive(seed, "attack"), **options)


def largest_error(found: Reconstruction, pixels: Tensor) -> float:
    """The largest difference of a pixel, every private picture compared with the closest proposal."""
    return max(min(float((record - truth).abs().max()) for record in found.records) for truth in pixels)
