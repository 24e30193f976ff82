"""A federated client that answers with its whole weights as numpy arrays, as Flower's do: give the weights that the round began with."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import gradleak
from examples.common import batch, show, small_model


def main(place: Path) -> list[str]:
    model = small_model(place / "model")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch()).loss.backward()
    optimizer.step()
    answer = {name: value.numpy() for name, value in model.state_dict().items()}
    gradleak.capture(answer, place / "answer")

    return show(place / "answer", place / "model", reference=place / "model")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
