"""A LoRA adapter: the folder that peft writes is the model, and its gradient is what is shared."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

import gradleak
from examples.common import batch, show, small_model
from gradleak.models.silence import quiet


def main(place: Path) -> list[str]:
    base = small_model(place / "base")
    base.name_or_path = str(place / "base")
    with quiet():
        model = get_peft_model(base, LoraConfig(r=16, target_modules=["query", "key", "value"], task_type="SEQ_CLS"))
        model.eval()
        for name, value in model.named_parameters():  # an adapter that has trained already; B = 0 shows few inputs
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.02, generator=torch.Generator().manual_seed(0))
        model.save_pretrained(str(place / "adapter"))

    model(**batch()).loss.backward()
    gradleak.capture(gradleak.capture.from_gradients(model), place / "update", batch_size=2, seq_len=9)

    return show(place / "update", place / "adapter")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
