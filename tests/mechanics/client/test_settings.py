"""Settings of local training: what they imply, and which of them cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradleak.core.errors import SpecError
from gradleak.mechanics.client.settings import LocalTraining

pytestmark = pytest.mark.property


@given(records=st.integers(1, 40), size=st.integers(1, 12), epochs=st.integers(1, 4))
def test_steps_of_mini_batches_are_those_of_a_loop(records: int, size: int, epochs: int) -> None:
    training = LocalTraining(share="delta", mini_batch=size, epochs=epochs)
    steps = sum(len(range(0, records, size)) for _ in range(epochs))
    assert training.local_steps(records) == steps
    assert not training.plain and not training.single


@given(steps=st.integers(1, 9))
def test_full_batch_steps_do_not_depend_on_the_records(steps: int) -> None:
    training = LocalTraining(share="delta", steps=steps)
    assert training.local_steps(17) == steps and training.plain and training.single == (steps == 1)


def test_one_step_of_anything_is_a_plain_gradient_of_the_same_model() -> None:
    training = LocalTraining(
        share="delta", mini_batch=4, epochs=3, momentum=0.9, lora_rank=2, dtype="bf16", dropout=True, micro_batch=2
    )
    step = training.one_step()
    assert (step.share, step.steps, step.epochs, step.mini_batch) == ("gradient", 1, 1, None)
    assert (step.momentum, step.optimizer, step.dtype) == (0.0, "sgd", "float32")
    assert step.lora == training.lora and step.dropout and step.micro_batch == 2


def test_adapters_only_where_they_have_a_rank() -> None:
    assert LocalTraining().lora is None
    adapters = LocalTraining(lora_rank=4, lora_targets="all").lora
    assert adapters is not None and (adapters.rank, adapters.targets) == (4, "all")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"share": "weights"}, "gradient, delta"),
        ({"optimizer": "adam"}, "sgd, adamw"),
        ({"dtype": "fp8"}, "float32, bf16, fp16"),
        ({"steps": 0}, "steps ≥ 1"),
        ({"lr": 0.0}, "lr > 0"),
        ({"lr": math.nan}, "lr > 0"),
        ({"weight_decay": -1.0}, "weight_decay ≥ 0"),
        ({"steps": 2}, r"delta\(steps=2\)"),
        ({"mini_batch": 2}, r"delta\(mini_batch=2\)"),
        ({"share": "delta", "mini_batch": 0}, "at least 1 record"),
        ({"micro_batch": 0}, "at least 1 record"),
        ({"share": "delta", "epochs": 2}, "needs a mini_batch"),
        ({"share": "delta", "epochs": 0}, "at least 1"),
        ({"share": "delta", "mini_batch": 2, "steps": 2}, "counts epochs, not steps"),
        ({"share": "delta", "mini_batch": 2, "micro_batch": 3}, "larger than the step's"),
        ({"momentum": 1.0}, r"\[0, 1\)"),
        ({"momentum": 0.5}, "belongs to SGD"),
        ({"share": "delta", "optimizer": "adamw", "momentum": 0.5}, "belongs to SGD"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        LocalTraining(**settings)
