"""Updates as a training loop of the libraries makes them: one step on texts, captured from ``.grad``. Independent of gradleak's own client."""

from __future__ import annotations

import torch
from torch import Tensor

from gradleak.core.rng import derive
from gradleak.models import Subject, load_subject

SETTINGS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
TEXTS = ("the surgery is set for tuesday", "please wire the rent today")


def subject_of(kind: str = "bert", *, seed: int = 0, **settings: object) -> Subject:
    """A small random model; a width that leaves room for two texts."""
    sizes = SETTINGS if kind == "bert" else {k: v for k, v in SETTINGS.items() if k != "intermediate_size"}
    return load_subject(f"random:{kind}", settings={**sizes, **settings}, seed=seed)


def encoded(subject: Subject, texts: tuple[str, ...] = TEXTS) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels."""
    assert subject.tokenizer is not None
    ids, mask = subject.tokenizer.encode(list(texts), 24)
    labels = torch.randint(subject.classes, (len(texts),), generator=derive(0, "labels"))
    return ids, mask, labels


def gradient_of(
    subject: Subject, texts: tuple[str, ...] = TEXTS, *, dtype: torch.dtype | None = None, scale: float = 1.0
) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy, under autocast where a format is given, times ``scale``."""
    ids, mask, labels = encoded(subject, texts)
    module = subject.module
    module.zero_grad()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        logits = module(input_ids=ids, attention_mask=mask.long()).logits
    (torch.nn.functional.cross_entropy(logits.float(), labels) * scale).backward()
    return {name: p.grad.detach().clone() for name, p in module.named_parameters() if p.grad is not None}
