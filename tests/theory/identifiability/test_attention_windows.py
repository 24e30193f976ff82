"""Who attends to whom, read from one backward pass, against the attention weights that the library hands out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradleak.theory.identifiability.attention_windows import Band, read_bands
from tests.support.tiny import text_model

pytestmark = pytest.mark.oracle


@given(
    before=st.none() | st.integers(0, 5), after=st.none() | st.integers(0, 5),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)  # fmt: skip
def test_visible_places_are_those_of_the_band_between_real_tokens(
    before: int | None, after: int | None, lengths: list[int]
) -> None:
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    seen = Band(before=before, after=after).visible(mask)
    for record, length in enumerate(lengths):
        for i in range(6):
            for j in range(6):
                near = (before is None or j >= i - before) and (after is None or j <= i + after)
                assert bool(seen[record, i, j]) == (near and i < length and j < length)


@pytest.mark.parametrize(("kind", "causal"), [("gpt2", True), ("llama", True), ("bert", False), ("distilbert", False)])
def test_a_whole_record_or_all_before(kind: str, causal: bool) -> None:
    bands = read_bands(text_model(kind), positions=6)
    assert bands == (Band(before=None, after=0 if causal else None),) * 2
    assert all(band.causal is causal for band in bands)


def test_a_window_is_read_block_by_block() -> None:
    """ModernBERT: a global block, then local ones of the configured width."""
    subject = text_model("modernbert", local_attention=4)
    ids = torch.arange(5, 13).unsqueeze(0)
    bands = read_bands(subject, positions=8)
    subject.module.set_attn_implementation("eager")
    weights = subject.module(input_ids=ids, output_attentions=True).attentions
    assert len({*bands}) == 2, "one block sees everything, the other its neighbors"
    for band, layer in zip(bands, weights, strict=True):
        seen = (layer[0] > 0).any(0)
        assert torch.equal(band.visible(torch.ones(1, 8, dtype=torch.bool))[0], seen)
