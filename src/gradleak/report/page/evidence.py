"""What was recovered, beside what was sent. This is the only part of the report that opens private data, and the
only place where it is redacted; what leaves here without ``reveal`` holds no private token, id or pixel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gradleak.core.errors import DataError
from gradleak.core.record import Record
from gradleak.report.conclusions.pooling import NO_RESULT, Cell
from gradleak.report.page import png
from gradleak.report.page.coloring import Match, as_bag, in_order

RECORDS_PER_CELL = 6
TOKENS_PER_RECORD = 160
BYTES_PER_TOKEN = 64
IMAGE_SIDE = 64
PAGE_BYTES = 1_300_000
"""What all evidence together may take, so that the page stays under 2 MB."""

BLOCKS = ((2, "██"), (5, "████"))
LONG_BLOCK = "███████"
UNPRINTABLE = {
    code: 0xFFFD for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token as it is shown; ``sure``: the probability that the attack itself gives it, None where it says nothing."""

    text: str
    mark: Match
    sure: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One private record and what was made of it.

    Attributes:
        tokens: ``(original, recovered)`` by position, either None where the other is longer; empty for a bag or an image.
        originals: marks of the private record alone, for a bag.
        images: ``(original, recovered)`` as data URIs, None if redacted or missing; None for text.
        summary: what the colors say, in words.
        hidden: tokens beyond ``TOKENS_PER_RECORD``.
    """

    tokens: tuple[tuple[Token | None, Token | None], ...] = ()
    originals: tuple[Token, ...] = ()
    images: tuple[str | None, str | None] | None = None
    summary: str = ""
    hidden: int = 0

    @property
    def claims(self) -> bool:
        """Whether the attack says how sure it is of what it found."""
        return any(found is not None and found.sure is not None for _, found in self.tokens)

    def cost(self) -> int:
        images = sum(len(uri or "") for uri in self.images or ())
        return 400 + BYTES_PER_TOKEN * (2 * len(self.tokens) + len(self.originals)) + images


@dataclass(frozen=True, kw_only=True, slots=True)
class CellEvidence:
    """What the page shows of one cell.

    Attributes:
        pairs: one per private record, in the order of the run.
        bag: tokens of an unordered proposal, else empty.
        total: private records of the cell; ``pairs`` may be fewer.
        dropped: true if the space of the page was spent.
    """

    pairs: tuple[Pair, ...] = ()
    bags: Mapping[int, tuple[Token, ...]] = field(default_factory=dict)
    total: int = 0
    dropped: bool = False

    @property
    def claims(self) -> bool:
        """Whether the attack says how sure it is of its tokens."""
        return any(pair.claims for pair in self.pairs) or any(
            t.sure is not None for bag in self.bags.values() for t in bag
        )


@dataclass(slots=True)
class Budget:
    """Bytes left for evidence on this page."""

    left: int = PAGE_BYTES

    def take(self, cost: int) -> bool:
        if cost > self.left:
            return False
        self.left -= cost
        return True


def cell_evidence(run: Path, cell: Cell, *, reveal: bool, budget: Budget) -> CellEvidence:
    """The first ``RECORDS_PER_CELL`` private records of a cell, repeats in order: chosen before looking at the scores."""
    pairs: list[Pair] = []
    bags: dict[int, tuple[Token, ...]] = {}
    total, dropped = 0, False
    for record in cell.records:
        saved = None if record.status["name"] in NO_RESULT else _open(run, record)
        if saved is None:
            continue
        total += len(saved.indices())
        dropped = dropped or budget.left < BYTES_PER_TOKEN
        found, bag = saved.pairs(0 if dropped else RECORDS_PER_CELL - len(pairs), reveal=reveal)
        for pair in found:
            cost = pair.cost() + (BYTES_PER_TOKEN * len(bag) if bag else 0)
            if not budget.take(cost):
                dropped = True
                break
            if bag:
                bags.setdefault(len(pairs), bag)
                bag = ()
            pairs.append(pair)
    return CellEvidence(pairs=tuple(pairs), bags=bags, total=total, dropped=dropped)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Saved:
    """The tensors of one record, with the text of their tokens."""

    modality: str
    ordered: bool
    tensors: Mapping[str, NDArray]
    pieces: Mapping[str, list[str]]

    def indices(self) -> list[int]:
        return sorted(int(key.removeprefix("truth.")) for key in self.tensors if key.startswith("truth."))

    def pairs(self, most: int, *, reveal: bool) -> tuple[list[Pair], tuple[Token, ...]]:
        """The first ``most`` records, and the bag of tokens that belongs to them all if there is no order."""
        indices = self.indices()[:most]
        if not indices:
            return [], ()
        if self.modality == "image":
            return [self._image_pair(i, reveal=reveal) for i in indices], ()
        if not self.ordered:
            return self._bag(most, reveal=reveal)
        return [self._text_pair(i, reveal=reveal) for i in indices], ()

    def _text_pair(self, index: int, *, reveal: bool) -> Pair:
        truth, guess = self._ids("truth", index), self._ids("guess", index)
        truth_marks, guess_marks = in_order(truth, guess)
        originals = self._tokens("truth", index, truth_marks, reveal=reveal)
        recovered = self._tokens("guess", index, guess_marks, reveal=reveal)
        length = max(len(originals), len(recovered))
        tokens = [
            (originals[i] if i < len(originals) else None, recovered[i] if i < len(recovered) else None)
            for i in range(min(length, TOKENS_PER_RECORD))
        ]
        missed = "" if guess else "no proposal for this record; "
        return Pair(
            tokens=tuple(tokens),
            summary=missed + _counts(truth_marks, guess_marks) + self._claim(index),
            hidden=length - len(tokens),
        )

    def _bag(self, most: int, *, reveal: bool) -> tuple[list[Pair], tuple[Token, ...]]:
        indices = self.indices()
        keys = sorted(key for key in self.tensors if key.startswith(("guess.", "extra.")))
        bag = [(key, i) for key in keys for i in range(len(self.tensors[key]))]
        sure = [self._sure(int(key.split(".")[1]), i) if key.startswith("guess.") else None for key, i in bag]
        ids = [int(self.tensors[key][i]) for key, i in bag]
        truth_marks, bag_marks = as_bag([self._ids("truth", i) for i in indices], ids)
        pairs = [
            Pair(
                originals=tuple(self._tokens("truth", i, marks, reveal=reveal)[:TOKENS_PER_RECORD]),
                summary=_counts(marks, ()),
                hidden=max(0, len(marks) - TOKENS_PER_RECORD),
            )
            for i, marks in zip(indices, truth_marks, strict=True)
        ]
        tokens = [
            Token(text=_shown(self._piece(key, i), reveal=reveal), mark=mark, sure=claim)
            for (key, i), mark, claim in zip(bag, bag_marks, sure, strict=True)
        ]
        # An order of the bag would say more than the attack did.
        tokens.sort(key=lambda token: (token.mark is Match.WRONG, token.text))
        return pairs[:most], tuple(tokens[: 2 * TOKENS_PER_RECORD])

    def _image_pair(self, index: int, *, reveal: bool) -> Pair:
        truth, guess = self.tensors[f"truth.{index}"], self.tensors.get(f"guess.{index}")
        if guess is None:
            return Pair(images=(_picture(truth) if reveal else None, None), summary="no proposal for this record")
        error = float(np.mean((truth.astype(np.float64) - np.clip(guess.astype(np.float64), 0, 1)) ** 2))
        quality = "identical" if error == 0 else f"{-10 * np.log10(error):.1f} dB PSNR"
        shown = (_picture(truth), _picture(guess)) if reveal else (None, None)
        return Pair(images=shown, summary=quality)

    def _ids(self, side: str, index: int) -> list[int]:
        tensor = self.tensors.get(f"{side}.{index}")
        return [] if tensor is None else [int(token) for token in tensor.reshape(-1)]

    def _tokens(self, side: str, index: int, marks: Sequence[Match], *, reveal: bool) -> list[Token]:
        key = f"{side}.{index}"
        return [
            Token(
                text=_shown(self._piece(key, i), reveal=reveal),
                mark=mark,
                sure=self._sure(index, i) if side == "guess" else None,
            )
            for i, mark in enumerate(marks)
        ]

    def _sure(self, index: int, place: int) -> float | None:
        claims = self.tensors.get(f"confidence.{index}")
        return None if claims is None else float(claims[place])

    def _claim(self, index: int) -> str:
        """How many wrong tokens the attack expects among its own, beside how many there are."""
        claims = self.tensors.get(f"confidence.{index}")
        return "" if claims is None else f"; by its own confidence {float((1 - claims).sum()):.2g} wrong"

    def _piece(self, key: str, position: int) -> tuple[str, bool]:
        """The token's text and whether it is text; its id where the run kept no text."""
        pieces = self.pieces.get(key)
        if pieces is None:
            return str(int(self.tensors[key].reshape(-1)[position])), False
        return pieces[position], True


def _open(run: Path, record: Record) -> _Saved | None:
    path = run / "tensors" / f"{Path(record.cell).name}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"Cannot read {path}: {error}. Delete it and run the audit again.") from error
    prefix = "pieces."
    pieces = {key.removeprefix(prefix): json.loads(text) for key, text in metadata.items() if key.startswith(prefix)}
    _check_pieces(path, tensors, pieces)
    return _Saved(
        modality=metadata.get("modality", str(record.scenario["modality"])),
        ordered=metadata.get("ordered", "true") == "true",
        tensors=tensors,
        pieces=pieces,
    )


def _check_pieces(path: Path, tensors: Mapping[str, NDArray], pieces: Mapping[str, list[str]]) -> None:
    for key in (key for key in tensors if key.startswith("confidence.")):
        guess = tensors.get(key.replace("confidence.", "guess."))
        if guess is None or guess.size != tensors[key].size:
            raise DataError(f"{path} holds no claim for every token in {key!r}. Delete it and run the audit again.")
    for key, texts in pieces.items():
        if key in tensors and len(texts) != tensors[key].size:
            raise DataError(
                f"{path} holds {len(texts)} pieces of text for the {tensors[key].size} tokens of {key!r}. "
                "Delete it and run the audit again."
            )


def piece_shown(piece: str, *, reveal: bool) -> str:
    """The text of a token as the page shows it: readable, or a bar in one of three widths."""
    return _shown((piece, True), reveal=reveal)


def _shown(piece: tuple[str, bool], *, reveal: bool) -> str:
    text, is_text = piece
    if not reveal:
        return _block(len(text)) if is_text else BLOCKS[1][1]
    visible = text.replace("\n", "⏎").replace("\t", "⇥").translate(UNPRINTABLE)
    return visible if visible.strip() else "␣"


def _block(length: int) -> str:
    """A bar in one of three widths: the shape of the text stays visible, its letters do not."""
    return next((block for limit, block in BLOCKS if length <= limit), LONG_BLOCK)


def _counts(truth: Sequence[Match], guess: Sequence[Match]) -> str:
    total, elsewhere, missing = len(truth), truth.count(Match.ELSEWHERE), truth.count(Match.MISSING)
    first = f"{truth.count(Match.PLACE)} of {total} in place" if guess else f"{elsewhere} of {total} recovered"
    others = {"elsewhere": elsewhere if guess else 0, "missing": missing, "wrong": guess.count(Match.WRONG)}
    return ", ".join([first, *(f"{amount} {name}" for name, amount in others.items() if amount)])


def _picture(pixels: NDArray) -> str:
    """At most ``IMAGE_SIDE`` pixels a side, by whole-number block means; values clipped to [0, 1]."""
    image = np.clip(np.nan_to_num(pixels.astype(np.float64)), 0, 1)
    step = -(-max(image.shape[1:]) // IMAGE_SIDE)
    height, width = (max(1, side // step) for side in image.shape[1:])
    image = image[:3, : height * step, : width * step] if step > 1 else image[:3]
    image = image.reshape(image.shape[0], height, image.shape[1] // height, width, image.shape[2] // width).mean((2, 4))
    if image.shape[0] == 2:
        image = image[:1]
    return png.data_uri(np.round(255 * image).astype(np.uint8).transpose(1, 2, 0))
