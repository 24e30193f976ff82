"""Records of files: the same in every format, reproducible draws, targets as published."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gradleak.core.batch import IGNORED
from gradleak.core.rng import derive
from gradleak.harness.request.data import draw_batch, load_pool
from gradleak.models import load_subject

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 300}


def test_the_shipped_messages_are_what_the_file_says() -> None:
    folder = resources.files("gradleak") / "data"
    rows = list(csv.DictReader((folder / "messages.csv").read_text(encoding="utf-8").splitlines()))
    pool = load_pool(None)
    assert pool.texts == tuple(row["text"] for row in rows)
    assert pool.label_names == ("routine", "urgent")
    assert pool.labels == tuple(int(row["label"] == "urgent") for row in rows)
    assert pool.size >= 90 and len(set(pool.texts)) == pool.size
    assert all(5 <= len(text.split()) <= 25 for text in pool.texts)
    public = (folder / "public.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(public)) == len(public) >= 200 and not set(public) & set(pool.texts)


def test_text_formats_hold_the_same_records(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first one\n\n  second, two  \n")
    (tmp_path / "a.csv").write_text('id,note,group\n1,first one,9\n2,"second, two",10\n3, ,9\n')
    (tmp_path / "a.jsonl").write_text('{"note": "first one", "group": 9}\n\n{"note": "second, two", "group": 10}\n')
    plain = load_pool(tmp_path / "a.txt")
    table, lines = (
        load_pool(tmp_path / name, text_column="note", label_column="group") for name in ("a.csv", "a.jsonl")
    )
    assert plain.texts == table.texts == lines.texts == ("first one", "second, two")
    assert plain.labels is None and plain.label_names is None
    assert table.label_names == lines.label_names == ("9", "10") and table.labels == (0, 1)
    assert table.fingerprint == lines.fingerprint != plain.fingerprint


def test_images_are_cropped_to_the_center_and_labeled_by_folder(tmp_path: Path) -> None:
    for label, shade in (("dark", 51), ("bright", 204)):
        (tmp_path / label).mkdir()
        wide = np.full((8, 24, 3), 255, dtype=np.uint8)
        wide[:, 8:16] = shade
        Image.fromarray(wide).save(tmp_path / label / "one.png")
    pool = load_pool(tmp_path, image_size=8)
    assert pool.images is not None and pool.images.shape == (2, 3, 8, 8)
    assert pool.label_names == ("bright", "dark") and pool.labels == (0, 1)
    torch.testing.assert_close(pool.images[0], torch.full((3, 8, 8), 0.8))
    torch.testing.assert_close(pool.images[1], torch.full((3, 8, 8), 0.2))
    assert load_pool(tmp_path, image_size=8, channels=1).images.shape == (2, 1, 8, 8)


def test_batches_are_drawn_without_replacement_and_reproducibly() -> None:
    pool, subject = load_pool(None), load_subject("random:bert", settings=SMALL)
    batch, indices = draw_batch(pool, subject, batch_size=pool.size, max_length=200, rng=derive(0, "a"))
    again, same = draw_batch(pool, subject, batch_size=pool.size, max_length=200, rng=derive(0, "a"))
    assert sorted(indices) == list(range(pool.size)) and indices == same
    assert torch.equal(batch.inputs, again.inputs) and torch.equal(batch.labels, again.labels)
    assert subject.tokenizer is not None and pool.texts is not None and pool.labels is not None
    assert [subject.tokenizer.decode(row) for row in batch.records()] == [pool.texts[index] for index in indices]
    assert batch.labels.tolist() == [pool.labels[index] for index in indices]
    assert draw_batch(pool, subject, batch_size=8, max_length=20, rng=derive(1, "a"))[1] != indices[:8]


def test_texts_are_cut_at_the_asked_length_and_at_the_model_s() -> None:
    pool = load_pool(None)
    short = load_subject("random:bert", settings=SMALL | {"max_position_embeddings": 16})
    for asked, expected in ((10, 10), (99, 16)):
        batch, _ = draw_batch(pool, short, batch_size=4, max_length=asked, rng=derive(0))
        assert batch.inputs.shape[1] == expected
        short.logits(inputs=batch.inputs, mask=batch.mask)


def test_causal_targets_are_the_real_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\nabcd\n")
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SMALL)
    batch, indices = draw_batch(load_pool(tmp_path / "a.txt"), subject, batch_size=2, max_length=9, rng=derive(0))
    row = batch.labels[indices.index(0)].tolist()
    assert row == [257, 97, 98, 258, IGNORED, IGNORED]


def test_masking_hides_the_published_share_and_keeps_the_record() -> None:
    subject = load_subject("random:bert", loss="masked-lm", settings=SMALL)
    pool = load_pool(None)
    batch, indices = draw_batch(pool, subject, batch_size=40, max_length=300, rng=derive(0))
    assert subject.tokenizer is not None and pool.texts is not None
    hidden = batch.labels != IGNORED
    assert torch.equal(hidden, batch.inputs == subject.tokenizer.mask_id)
    assert not bool((hidden & ~batch.mask).any())
    for row, index in enumerate(indices):
        ordinary = len(pool.texts[index].encode())
        assert abs(int(hidden[row].sum()) - 0.15 * ordinary) <= 0.5
        assert subject.tokenizer.decode(batch.records()[row]) == pool.texts[index]
    places = torch.nonzero(hidden)[:, 1].double() / batch.mask.sum(dim=1).repeat_interleave(hidden.sum(dim=1))
    # About 500 uniform places: their mean has a standard error of 0.013; six of them is one false alarm in 10^9.
    assert abs(float(places.mean()) - 0.5) < 0.08


def test_labels_are_drawn_where_the_data_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"note {number}" for number in range(64)))
    subject = load_subject("random:bert", classes=4, settings=SMALL)
    batch, _ = draw_batch(load_pool(tmp_path / "a.txt"), subject, batch_size=64, max_length=20, rng=derive(0))
    # A class misses all of 64 uniform draws with probability 4 * 0.75^64 < 1e-7.
    assert set(batch.labels.tolist()) == {0, 1, 2, 3}


def test_image_batches_carry_pixels(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.full((4, 4), 100, dtype=np.uint8)).save(tmp_path / f"{name}.jpg")
    settings = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    subject = load_subject("random:vit", settings=settings)
    pool = load_pool(tmp_path, image_size=16)
    batch, _ = draw_batch(pool, subject, batch_size=2, max_length=9, rng=derive(0))
    assert batch.inputs.shape == (2, 3, 16, 16) and batch.modality == "image"
    assert subject.logits(pixels=batch.inputs).shape == (2, 2)
