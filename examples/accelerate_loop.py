"""Accelerate: capture where gradients are synchronized, from the unwrapped model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator

import gradleak
from examples.common import batch, show, small_model


def main(place: Path) -> list[str]:
    accelerator = Accelerator(cpu=True)
    bare = small_model(place / "model")
    model, optimizer = accelerator.prepare(bare, torch.optim.AdamW(bare.parameters()))

    accelerator.backward(model(**batch()).loss)
    if accelerator.sync_gradients:
        update = gradleak.capture.from_gradients(accelerator.unwrap_model(model))
        gradleak.capture(update, place / "update", loss="classification", batch_size=2, seq_len=9)
    optimizer.step()

    return show(place / "update", place / "model")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
