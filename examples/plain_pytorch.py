"""A loop in plain PyTorch: capture after ``backward`` and before the optimizer clears the gradients."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gradleak
from examples.common import batch, show, small_model


def main(place: Path) -> list[str]:
    model = small_model(place / "model")

    loss = model(**batch()).loss
    loss.backward()
    gradleak.capture(
        gradleak.capture.from_gradients(model),
        place / "update",
        loss="classification",
        batch_size=2,
        seq_len=9,
        framed=True,
        share="gradient",
        defenses="none",
    )

    return show(place / "update", place / "model")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
