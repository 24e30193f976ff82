"""Private records: what a batch takes, what there is to recover of it, and labels as probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradleak.core.batch import IGNORED, Batch, TrainingData, soft_labels
from gradleak.core.errors import DataError

pytestmark = pytest.mark.property


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=5), min_size=1, max_size=4), st.booleans())
def test_records_come_back_without_padding(texts: list[list[int]], left: bool) -> None:
    width = max(map(len, texts))
    ids, mask = torch.zeros(len(texts), width, dtype=torch.int64), torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        start = width - len(text) if left else 0
        ids[row, start : start + len(text)] = torch.tensor(text)
        mask[row, start : start + len(text)] = True
    batch = Batch(inputs=ids, mask=mask, labels=torch.zeros(len(texts), dtype=torch.int64))
    assert [record.tolist() for record in batch.records()] == texts
    assert batch.size == len(texts) and batch.modality == "text"


def test_a_masked_token_is_recovered_as_what_it_hides() -> None:
    labels = torch.tensor([[IGNORED, 7, IGNORED]])
    batch = Batch(inputs=torch.tensor([[5, 103, 6]]), mask=torch.tensor([[True, True, False]]), labels=labels)
    assert [record.tolist() for record in batch.records()] == [[5, 7]]


def test_pictures_are_their_own_records() -> None:
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs=pixels, mask=torch.ones(2, dtype=torch.bool), labels=torch.zeros(2, dtype=torch.int64))
    assert batch.modality == "image" and torch.equal(torch.stack(batch.records()), pixels)


IDS, TRUE, ZEROS = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2).long()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"inputs": IDS[0]}, "token ids"),
        ({"inputs": IDS[:0], "mask": TRUE[:0], "labels": ZEROS[:0]}, "token ids"),
        ({"inputs": torch.zeros(2, 3, 4)}, "pixels"),
        ({"mask": TRUE[:, :2]}, "mask must be boolean"),
        ({"mask": TRUE.long()}, "mask must be boolean"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "Labels must have shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changed: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Batch(**({"inputs": IDS, "mask": TRUE, "labels": ZEROS} | changed))


def test_pixels_that_are_no_numbers_are_refused() -> None:
    pixels = torch.zeros(1, 1, 2, 2)
    pixels[0, 0, 1, 1] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        Batch(inputs=pixels, mask=torch.ones(1, dtype=torch.bool), labels=torch.zeros(1, dtype=torch.int64))


@given(st.lists(st.sampled_from([IGNORED, 0, 1, 2]), min_size=1, max_size=6))
def test_soft_labels_are_one_hot_or_nothing(labels: list[int]) -> None:
    rows = soft_labels(torch.tensor(labels), 3)
    assert rows.shape == (len(labels), 3)
    for label, row in zip(labels, rows.tolist(), strict=True):
        assert row == [float(c == label) for c in range(3)]


def test_training_data_counts_its_records() -> None:
    data = TrainingData(inputs=torch.zeros(4, 2, 8), targets=torch.zeros(4, 3), mask=torch.ones(4, 2).bool())
    assert data.size == 4 and data.noise == {}
