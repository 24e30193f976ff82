"""Where error signals reach, against gradients of a real model that are zero or not, and contexts counted by hand."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.errors import SpecError
from gradleak.core.rng import derive
from gradleak.theory.identifiability.attention_windows import Band
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.identifiability.receptive_field import distinct_contexts, propagate
from tests.support.tiny import text_batch, text_model

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(
    ("kind", "loss"), [("gpt2", "classification"), ("bert", "classification"), ("gpt2", "causal-lm")]
)
def test_positions_with_a_signal_are_those_whose_error_is_not_zero(kind: str, loss: str) -> None:
    subject = text_model(kind, loss=loss)
    batch = text_batch(subject, (6, 4))
    last = batch.mask.sum(1) - 1
    read = torch.zeros_like(batch.mask)
    if loss == "causal-lm":
        read = batch.mask & (torch.arange(6) < last.unsqueeze(1))
    elif kind == "gpt2":
        read[torch.arange(2), last] = True
    else:
        read[:, 0] = True
    band = Band(before=None, after=0 if kind == "gpt2" else None)
    reach = propagate(read, batch.mask, bands=(band, band))
    for block, expected in zip(subject.anatomy.blocks, reach, strict=True):
        flows = flow_through(subject, batch, [block.attention_output.module, block.mlp_output.module])
        for flow in flows.values():
            lit = flow.errors.abs().amax(-1) > 1e-12
            assert torch.equal(lit, expected.output)


def test_queries_need_two_entries_and_keys_need_queries() -> None:
    """A causal record of three, of which the first place is read: its softmax row has one entry, which is constant."""
    mask, read = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, False, False]])
    (reach,) = propagate(read, mask, bands=(Band(before=None, after=0),))
    assert not reach.queries.any() and not reach.keys.any() and reach.values.tolist() == [[True, False, False]]
    (reach,) = propagate(read.roll(2, dims=1), mask, bands=(Band(before=None, after=0),))
    assert reach.queries.tolist() == [[False, False, True]] and bool(reach.keys.all())


def test_a_window_lights_its_own_places_and_the_window_below_more() -> None:
    mask, read = torch.ones(1, 7, dtype=torch.bool), torch.zeros(1, 7, dtype=torch.bool)
    read[0, 6] = True
    first, second = propagate(read, mask, bands=(Band(before=2, after=0),) * 2)
    assert second.output.sum() == 1 and second.values[0].tolist() == [False] * 4 + [True] * 3
    assert first.output[0].tolist() == [False] * 4 + [True] * 3
    assert first.values[0].tolist() == [False] * 2 + [True] * 5


def test_shapes_that_do_not_fit_are_refused() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    for read, bands in ((mask[:, :2], (Band(before=None, after=0),)), (mask, ())):
        with pytest.raises(SpecError, match="at least one block"):
            propagate(read, mask, bands=bands)


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("band", [Band(before=None, after=0), Band(before=None, after=None), Band(before=1, after=1)])
def test_contexts_are_counted_by_what_they_hold(band: Band, positional: bool) -> None:
    ids = torch.randint(0, 3, (4, 5), generator=derive(0, "contexts"))
    mask = torch.ones_like(ids, dtype=torch.bool)
    seen = band.visible(mask)
    wanted = set()
    for row in range(4):
        for place in range(5):
            near = [j for j in range(5) if seen[row, place, j]]
            start = near[0] if positional else 0
            wanted.add((start, place - near[0], tuple(int(ids[row, j]) for j in near)))
    assert distinct_contexts(ids, seen, positional=positional, within=mask) == len(wanted)


def test_a_shared_prefix_counts_once() -> None:
    ids, mask = torch.tensor([[1, 2, 3], [1, 2, 4]]), torch.ones(2, 3, dtype=torch.bool)
    seen = Band(before=None, after=0).visible(mask)
    assert distinct_contexts(ids, seen, positional=True, within=mask) == 4
