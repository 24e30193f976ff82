"""What the examples share: a small random encoder in a folder, and two texts as its tokenizer frames them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gradleak
from gradleak.models.silence import quiet

TEXTS = ["the surgery is set for tuesday", "please wire the rent today"]


def small_model(folder: Path) -> Any:
    """A Hugging Face classifier, saved to ``folder`` as it is when the round begins."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    subject = gradleak.load_subject("random:bert", settings=sizes)
    with quiet():
        subject.module.save_pretrained(folder)
    return subject.module


def batch() -> dict[str, Tensor]:
    """What a tokenizer and a collator make of the texts."""
    tokenizer = gradleak.load_subject("random:bert", settings={"hidden_size": 8, "num_attention_heads": 1}).tokenizer
    assert tokenizer is not None
    ids, mask = tokenizer.encode(TEXTS, 16)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.tensor([0, 1])}


def show(update: str | Path, model: str | Path, **given: Any) -> list[str]:
    """Attacks the update and prints what was read; the same as `gradleak attack UPDATE --model MODEL --reveal`."""
    lines: list[str] = []
    for finding in gradleak.attack(str(update), str(model), attacks="token_support,span", **given):
        lines += [f"{finding.name} {finding.reconstruction.status.name}: {text}" for text in finding.contents()]
    print("\n".join(lines))
    return lines
