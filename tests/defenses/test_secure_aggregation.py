"""The average that the server sees: weighted by records, differentiable for who simulates it, bounded as its parts are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak.core.channel import Channel
from gradleak.core.errors import DataError, SpecError
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.defenses.secure_aggregation import SecureAggregation
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from tests.support.tiny import text_batch, text_model

pytestmark = pytest.mark.contract


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_the_average_is_weighted_by_records_and_simulated_as_it_is(sizes: list[int], seed: int) -> None:
    rng, stage = derive(seed, "clients"), SecureAggregation(number=len(sizes))
    parts = [torch.randn(3, 2, generator=rng) for _ in sizes]
    joined = stage.join(tuple(Update({"w": part}) for part in parts), tuple(sizes), rng)["w"]
    wanted = sum(size * part.double() for size, part in zip(sizes, parts, strict=True)) / sum(sizes)
    torch.testing.assert_close(joined.double(), wanted, rtol=1e-5, atol=1e-6)
    simulated = stage.surrogate({"w": torch.stack(parts).unsqueeze(0)}, tuple(sizes))["w"]
    torch.testing.assert_close(simulated[0].double(), wanted, rtol=1e-5, atol=1e-6)
    assert stage.clients() == len(sizes)


def test_a_bound_that_every_update_keeps_the_average_keeps() -> None:
    stage, rng = SecureAggregation(number=3), derive(0, "bound")
    for _ in range(20):
        parts = [torch.nn.functional.normalize(torch.randn(50, generator=rng), dim=0) for _ in range(3)]
        assert stage.join(tuple(Update({"w": p}) for p in parts), (1, 2, 5), rng).norm() <= 1 + 1e-6
    assert stage.preserves_norm_bound() and stage.norm_bound() is None and stage.gaussian_multiplier() is None


def test_a_short_format_is_rounded_once() -> None:
    stage = SecureAggregation(number=2)
    parts = tuple(Update({"w": torch.full((1,), value, dtype=torch.bfloat16)}) for value in (1.0, 1.0078125))
    assert stage.join(parts, (1, 1), derive(0))["w"].dtype is torch.bfloat16


def test_no_clients_and_fewer_records_than_clients_are_refused() -> None:
    with pytest.raises(SpecError, match="at least 1"):
        SecureAggregation(number=0)
    subject = text_model("gpt2")
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    channel = Channel(trainer=trainer, stages=(SecureAggregation(number=3),))
    with pytest.raises(DataError, match="3"):
        channel.observe(text_batch(subject, (4, 4)), derive(0))
