"""The embedding tables as a channel: positions and tokens read out of noise."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.embeddings.rows import EmbeddingChannel
from gradleak.models import load_subject

pytestmark = pytest.mark.oracle


def test_the_channel_reads_used_positions_and_tokens_out_of_noise() -> None:
    subject = load_subject("random:gpt2", settings={"vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2})
    names = subject.anatomy.token_embedding, subject.anatomy.position_embedding
    rng = torch.Generator().manual_seed(0)
    update = {name: 0.1 * torch.randn(subject.module.get_parameter(name or "").shape, generator=rng) for name in names}
    for name, used in zip(names, ([3, 17, 250], range(12)), strict=True):
        update[name][list(used)] += 1.0
    channel = EmbeddingChannel.of(update, subject.anatomy)  # type: ignore[arg-type]
    assert channel is not None and channel.places is not None
    assert channel.longest == 12
    assert torch.equal(channel.places, update[names[1]][:12])
    assert set(channel.support.ids.tolist()) == {3, 17, 250}
    assert channel.support.reliable and not channel.support.exact
    # A gap means that noise hid a row: how far records reach is then not told.
    update[names[1]][5] = 0.1 * torch.randn(32, generator=rng)
    assert EmbeddingChannel.of(update, subject.anatomy).longest is None  # type: ignore[arg-type, union-attr]
