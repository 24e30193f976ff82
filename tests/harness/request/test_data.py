"""Every way in which data can be wrong ends in one short message that names the cause and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from gradleak.core.errors import DataError, UnsafeFileError
from gradleak.core.rng import derive
from gradleak.harness.request.data import Pool, draw_batch, load_pool
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.errors

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 300}
PIXELS = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def pool_of(*texts: str, labels: tuple[str, ...] = ()) -> Pool:
    return Pool(
        name="notes.txt",
        texts=texts,
        images=None,
        labels=tuple(range(len(labels))) or None,
        label_names=labels or None,
        fingerprint="",
    )


def small(model_type: str, loss: str = "classification") -> Subject:
    return load_subject(f"random:{model_type}", loss=loss, settings=PIXELS if model_type == "vit" else SMALL)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        load_pool(tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", ""),
        ("a.txt", "\n  \n"),
        ("a.csv", ""),
        ("a.csv", "text,label\n"),
        ("a.jsonl", "\n"),
        ("b.csv", "text\n \n"),
    ],
)
def test_empty_file(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match="holds no"):
        load_pool(write(tmp_path, name, content))


@pytest.mark.parametrize("content", (b"caf\xe9 au lait\n", b"\xff\xfea\x00b\x00"))
def test_text_that_is_not_utf8(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        load_pool(write(tmp_path, "a.txt", content))


def test_binary_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="null characters"):
        load_pool(write(tmp_path, "a.txt", b"a\x00b"))


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown suffix '\.docx'"):
        load_pool(write(tmp_path, "a.docx", "x"))
    with pytest.raises(DataError, match="give the folder"):
        load_pool(write(tmp_path, "a.png", "x"))


@pytest.mark.parametrize("suffix", ("pkl", "pickle", "pt", "npy", "bin"))
def test_pickled_data_is_refused_unopened(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UnsafeFileError, match="run code"):
        load_pool(tmp_path / f"never_opened.{suffix}")


def test_missing_columns_are_listed(tmp_path: Path) -> None:
    table = write(tmp_path, "a.csv", "id,note,mood\n1,hello,good\n")
    with pytest.raises(DataError, match=r"no column 'text'\. It has: id, note, mood\. .*--text-column"):
        load_pool(table)
    with pytest.raises(DataError, match=r"no column 'topic'\. It has: id, note, mood\. .*--label-column"):
        load_pool(table, text_column="note", label_column="topic")
    lines = write(tmp_path, "a.jsonl", '{"note": "hello"}\n{"other": "x"}\n')
    with pytest.raises(DataError, match=r"no column 'text'\. It has: note, other"):
        load_pool(lines)


def test_columns_of_plain_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no columns"):
        load_pool(write(tmp_path, "a.txt", "hello"), text_column="text")


@pytest.mark.parametrize("label", ("", "  "))
def test_missing_label(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match=r"Record 2 of a\.csv has no usable label"):
        load_pool(write(tmp_path, "a.csv", f"text,label\nx,good\ny,{label}\n"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', "Line 2 .* is not JSON"),
        ('["a"]\n', "Line 1 .* is no JSON object"),
        ('{"text": 5}\n', "Record 1 .* has no text in the column 'text' but a int"),
        ('{"text": "a", "label": [1]}\n', "no usable label"),
    ],
)
def test_malformed_lines(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_pool(write(tmp_path, "a.jsonl", content))


def test_malformed_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a well-formed table"):
        load_pool(write(tmp_path, "a.csv", 'text\n"never closed\n'))


def test_image_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the model reads text"):
        load_pool(tmp_path)
    with pytest.raises(DataError, match="holds no image"):
        load_pool(tmp_path, image_size=8)
    write(tmp_path, "a.png", b"not an image")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        load_pool(tmp_path, image_size=8)
    (tmp_path / "cats").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cats" / "b.png")
    with pytest.raises(DataError, match="both directly and in sub-folders"):
        load_pool(tmp_path, image_size=8)


def test_channels_that_files_do_not_have(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="images of 4 channels"):
        load_pool(tmp_path, image_size=8, channels=4)


@pytest.mark.parametrize("size", (0, 3))
def test_batch_larger_than_the_data(size: int) -> None:
    with pytest.raises(DataError, match=r"holds 2 records.*from 1 to 2"):
        draw_batch(pool_of("a", "b"), small("bert"), batch_size=size, max_length=9, rng=derive(0))


def test_data_of_the_wrong_kind() -> None:
    images = Pool(
        name="cats", texts=None, images=torch.zeros(1, 3, 16, 16), labels=None, label_names=None, fingerprint=""
    )
    with pytest.raises(DataError, match="reads text, and cats holds images"):
        draw_batch(images, small("bert"), batch_size=1, max_length=9, rng=derive(0))
    with pytest.raises(DataError, match=r"reads images, and notes\.txt holds text"):
        draw_batch(pool_of("a"), small("vit"), batch_size=1, max_length=9, rng=derive(0))


def test_more_labels_than_classes() -> None:
    pool = pool_of("a", "b", "c", labels=("x", "y", "z"))
    with pytest.raises(DataError, match=r"3 labels \(x, y, z\) but the model has 2 classes.*classes=3"):
        draw_batch(pool, small("bert"), batch_size=1, max_length=9, rng=derive(0))


def test_texts_without_anything_to_predict_or_hide() -> None:
    with pytest.raises(DataError, match="no room for text"):
        draw_batch(pool_of("a"), small("bert"), batch_size=1, max_length=2, rng=derive(0))
    with pytest.raises(DataError, match="no token of a text"):
        small("gpt2").tokenizer.encode([], 9)
    lone = load_subject("random:gpt2", loss="causal-lm", settings=SMALL, tokenizer=_OneToken())
    with pytest.raises(DataError, match="nothing to predict"):
        draw_batch(pool_of("a"), lone, batch_size=1, max_length=9, rng=derive(0))
    hidden = load_subject("random:bert", loss="masked-lm", settings=SMALL, tokenizer=_OneToken())
    with pytest.raises(DataError, match="no ordinary token"):
        draw_batch(pool_of("a"), hidden, batch_size=1, max_length=9, rng=derive(0))


class _OneToken:
    """A tokenizer that makes a single special token of every text."""

    name, vocab_size, pad_id, mask_id, special_ids = "one", 260, 0, 1, frozenset({2})

    def encode(self, texts: tuple[str, ...], max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(texts), 1), 2), torch.ones(len(texts), 1, dtype=torch.bool)

    def decode(self, ids: torch.Tensor) -> str:
        return ""
