"""Private records come from files. A pool holds what a file holds; a batch is drawn from it, reproducibly.
Reads text and images only: nothing that could run code is opened. Must not know attacks, defenses or metrics.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.core.batch import IGNORED, Batch
from gradleak.core.errors import DataError, ModelError, UnsafeFileError
from gradleak.core.rng import derive
from gradleak.harness.request.images import IMAGE_SUFFIXES, read_images
from gradleak.models import Subject

MASKED_SHARE = 0.15
"""Share of tokens that masked-LM training hides (Devlin et al., BERT, arXiv 1810.04805, section 3.1)."""

_PICKLED = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Records to draw batches from: texts or images, never both.

    Attributes:
        name: of the file or folder.
        texts: one per record, or None.
        images: ``[records channels height width]`` in [0, 1], or None.
        labels: class ids, or None if the data has none.
        label_names: what the class ids stand for, in their order, or None.
        fingerprint: SHA-256 of the records and labels.
    """

    name: str
    texts: tuple[str, ...] | None
    images: Float[Tensor, "records channels height width"] | None
    labels: tuple[int, ...] | None
    label_names: tuple[str, ...] | None
    fingerprint: str

    @property
    def size(self) -> int:
        """Number of records."""
        return len(self.texts) if self.texts is not None else 0 if self.images is None else self.images.shape[0]


def load_pool(
    path: Path | None,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    channels: int = 3,
) -> Pool:
    """Reads a data file or a folder of images.

    Args:
        path: ``.txt`` (a record per line), ``.csv`` or ``.jsonl``, or a folder of png and jpeg images whose
            sub-folders, if any, are the labels; None for the messages that gradleak ships.
        text_column: of a table; the column ``text``, or the only one, if None.
        label_column: of a table; the column ``label`` if there is one and this is None.
        image_size: height and width in pixels to which images are cropped and resized.
        channels: 1 for gray, 3 for color.

    Raises:
        DataError: if the file is missing, empty, undecodable, of another kind, or lacks a column.
        UnsafeFileError: for a pickled file.
    """
    if path is None:
        content = resources.files("gradleak").joinpath("data", "messages.csv").read_text(encoding="utf-8")
        return _table_pool("messages", _csv_rows("messages", content), text_column, label_column)
    path = Path(path)
    if path.suffix.lower() in _PICKLED:
        raise UnsafeFileError(
            f"{path} can hold pickled objects, which run code when they are opened, so it is refused. "
            "Save the records as .txt, .csv or .jsonl."
        )
    if not path.exists():
        raise DataError(f"There is no file {path}. Check the path given to --data.")
    if path.is_dir():
        return _image_pool(path, image_size, channels)
    return _text_pool(path, text_column, label_column)


def matrix_pool(subject: Subject, *, records: int = 64, seed: int) -> Pool:
    """Normal matrices in [0, 1], cut at three deviations: the records of the theory, for the layer of the theory."""
    images = (0.5 + torch.randn(records, *subject.pixel_shape, generator=derive(seed, "matrices")) / 6).clamp(0.0, 1.0)
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return Pool(name="normal matrices", texts=None, images=images, labels=None, label_names=None, fingerprint=digest)


def draw_batch(
    pool: Pool, subject: Subject, *, batch_size: int, max_length: int, rng: torch.Generator
) -> tuple[Batch, tuple[int, ...]]:
    """Draws records without replacement and makes them what the subject is trained on.

    Args:
        max_length: longest text in tokens, special tokens included; longer ones are cut, also at the model's own limit.
        rng: decides which records, the labels where the pool has none, and what a masked language model hides.

    Returns:
        The batch, and the pool's indices of its records in order.

    Raises:
        DataError: if the batch is larger than the pool, or the pool does not fit the subject.
    """
    if not 1 <= batch_size <= pool.size:
        raise DataError(
            f"A batch of {batch_size} cannot be drawn: {pool.name} holds {pool.size} records. "
            f"Give a batch size from 1 to {pool.size}, or more data."
        )
    indices = tuple(torch.randperm(pool.size, generator=rng)[:batch_size].tolist())
    if pool.images is not None:
        return _image_batch(pool, pool.images, subject, indices, rng), indices
    return _text_batch(pool, pool.texts or (), subject, indices, max_length, rng), indices


def _text_pool(path: Path, text_column: str | None, label_column: str | None) -> Pool:
    suffix = path.suffix.lower()
    if suffix not in {".txt", ".csv", ".jsonl"}:
        hint = " An image belongs into a folder; give the folder." if suffix in IMAGE_SUFFIXES else ""
        raise DataError(
            f"{path} has the unknown suffix {suffix or '(none)'!r}. Data is .txt (a record per line), .csv, .jsonl, or a "
            f"folder of images.{hint}"
        )
    content = _decode(path)
    if suffix == ".txt":
        if text_column or label_column:
            raise DataError(
                f"{path} is plain text and has no columns. Leave the column names out, or give a .csv or .jsonl."
            )
        return _make_pool(path.name, [line.strip() for line in content.splitlines() if line.strip()], None)
    rows = _csv_rows(str(path), content) if suffix == ".csv" else _jsonl_rows(str(path), content)
    return _table_pool(path.name, rows, text_column, label_column)


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8, or check that it is a text file."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if "\0" in content:
        raise DataError(f"{path} holds null characters, so it is no text file.")
    return content


def _csv_rows(name: str, content: str) -> list[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(content, newline=""), strict=True, restkey="(beyond the header)"))
    except csv.Error as error:
        raise DataError(
            f"{name} is not a well-formed table: {error}. Quote fields that hold commas or quotes."
        ) from error


def _jsonl_rows(name: str, content: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"Line {number} of {name} is not JSON: {error.msg}.") from error
        if not isinstance(row, dict):
            raise DataError(f"Line {number} of {name} is no JSON object. Write one {{...}} per line.")
        rows.append(row)
    return rows


def _table_pool(
    name: str, rows: Sequence[Mapping[str, Any]], text_column: str | None, label_column: str | None
) -> Pool:
    if not rows:
        raise DataError(f"{name} holds no records. Give a file with at least one row below its header.")
    columns = list(dict.fromkeys(str(column) for row in rows for column in row))
    text_column = _choose(name, columns, text_column, default="text", single=True)
    labeled = label_column is not None or "label" in columns
    label = _choose(name, columns, label_column, default="label") if labeled else None
    texts: list[str] = []
    labels: list[Any] = []
    for number, row in enumerate(rows, start=1):
        text = row.get(text_column)
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"Record {number} of {name} has no text in the column {text_column!r} but a {type(text).__name__}."
            )
        if text is None or not text.strip():
            continue
        texts.append(text.strip())
        if label is not None:
            labels.append(_label(name, number, label, row))
    return _make_pool(name, texts, labels if label is not None else None)


def _choose(name: str, columns: Sequence[str], asked: str | None, *, default: str, single: bool = False) -> str:
    wanted = asked or (columns[0] if single and len(columns) == 1 else default)
    if wanted not in columns:
        option = f"--{default}-column"
        raise DataError(f"{name} has no column {wanted!r}. It has: {', '.join(columns)}. Name one with {option}.")
    return wanted


def _label(name: str, number: int, column: str, row: Mapping[str, Any]) -> str | int:
    value = row.get(column)
    if value is None or isinstance(value, list | dict | float) or not str(value).strip():
        raise DataError(f"Record {number} of {name} has no usable label in the column {column!r}: {value!r}.")
    return value if isinstance(value, int) else str(value).strip()


def _make_pool(name: str, texts: Sequence[str], labels: Sequence[Any] | None) -> Pool:
    if not texts:
        raise DataError(f"{name} holds no text. Give a file with at least one record.")
    ids, names = (None, None) if labels is None else number_labels(labels)
    digest = hashlib.sha256(json.dumps([list(texts), ids, names]).encode()).hexdigest()
    return Pool(name=name, texts=tuple(texts), images=None, labels=ids, label_names=names, fingerprint=digest)


def number_labels(labels: Sequence[Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Class ids in the sorted order of the labels (as numbers if all are), and the labels in that order."""
    texts = [str(label) for label in labels]
    numeric = all(text.lstrip("-").isdecimal() for text in texts)
    names = sorted(set(texts), key=int if numeric else None)
    place = {name: index for index, name in enumerate(names)}
    return tuple(place[text] for text in texts), tuple(names)


def _image_pool(folder: Path, image_size: int | None, channels: int) -> Pool:
    if image_size is None:
        raise DataError(f"{folder} is a folder of images, but the model reads text. Give a .txt, .csv or .jsonl file.")
    images, folders = read_images(folder, size=image_size, channels=channels)
    ids, names = (None, None) if folders is None else number_labels(folders)
    digest = hashlib.sha256(json.dumps([tuple(images.shape), ids, names]).encode())
    digest.update(images.contiguous().numpy().tobytes())
    return Pool(
        name=folder.name, texts=None, images=images, labels=ids, label_names=names, fingerprint=digest.hexdigest()
    )


def _image_batch(pool: Pool, images: Tensor, subject: Subject, indices: tuple[int, ...], rng: torch.Generator) -> Batch:
    if subject.modality != "image":
        raise DataError(f"{subject.name} reads text, and {pool.name} holds images. Give a .txt, .csv or .jsonl file.")
    return Batch(
        inputs=images[list(indices)],
        mask=torch.ones(len(indices), dtype=torch.bool),
        labels=_class_labels(pool, subject, indices, rng),
    )


def _text_batch(
    pool: Pool, texts: Sequence[str], subject: Subject, indices: tuple[int, ...], max_length: int, rng: torch.Generator
) -> Batch:
    if subject.tokenizer is None:
        raise DataError(f"{subject.name} reads images, and {pool.name} holds text. Give a folder of images.")
    limit = min(max_length, subject.anatomy.max_positions or max_length)
    ids, mask = subject.tokenizer.encode([texts[index] for index in indices], limit)
    loss = subject.loss
    if loss.labels_records:
        return Batch(inputs=ids, mask=mask, labels=_class_labels(pool, subject, indices, rng))
    if not bool(loss.visible(mask).any(dim=1).all()):
        raise DataError("A record of one token has nothing to predict. Drop it, or raise the maximum length.")
    labels = loss.labels_from(ids, mask)
    return Batch(inputs=ids, mask=mask, labels=labels) if labels is not None else _hide_tokens(subject, ids, mask, rng)


def _class_labels(
    pool: Pool, subject: Subject, indices: tuple[int, ...], rng: torch.Generator
) -> Int64[Tensor, " batch"]:
    if pool.labels is None:
        return torch.randint(subject.classes, (len(indices),), generator=rng)
    names = pool.label_names or ()
    if len(names) > subject.classes:
        raise DataError(
            f"{pool.name} has {len(names)} labels ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''}) but the "
            f"model has {subject.classes} classes. Load the model with classes={len(names)}, or name another label column."
        )
    return torch.tensor([pool.labels[index] for index in indices], dtype=torch.int64)


def _hide_tokens(
    subject: Subject, ids: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], rng: torch.Generator
) -> Batch:
    """Replaces a share of each record's ordinary tokens, at least one, by the mask token.

    Deviations: BERT leaves a tenth of the chosen tokens as they are and swaps a tenth for others; here all are hidden.
    """
    tokenizer = subject.tokenizer
    if tokenizer is None or tokenizer.mask_id is None:
        raise ModelError(f"{subject.name} has no mask token, which masked language modeling needs.")
    special = torch.tensor(sorted(tokenizer.special_ids), dtype=torch.int64)
    ordinary = mask & ~torch.isin(ids, special)
    chosen = torch.zeros_like(mask)
    for row in range(ids.shape[0]):
        places = ordinary[row].nonzero().flatten()
        if len(places) == 0:
            raise DataError(
                "A record has no ordinary token that could be hidden. Drop it, or raise the maximum length."
            )
        # Half a token rounds up, so that a short record is hidden in part too.
        count = max(1, math.floor(MASKED_SHARE * len(places) + 0.5))
        chosen[row, places[torch.randperm(len(places), generator=rng)[:count]]] = True
    return Batch(inputs=ids.masked_fill(chosen, tokenizer.mask_id), mask=mask, labels=torch.where(chosen, ids, IGNORED))
