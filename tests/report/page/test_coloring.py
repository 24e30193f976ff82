"""Colors of tokens, drawings and pictures: the small pure parts of the page."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gradleak.report.page import png, svg
from gradleak.report.page.coloring import Match, as_bag, in_order

pytestmark = pytest.mark.contract

P, E, W, M = Match.PLACE, Match.ELSEWHERE, Match.WRONG, Match.MISSING
TOKENS = st.lists(st.integers(0, 4), max_size=8)


def test_marks_by_hand() -> None:
    assert in_order([1, 2, 3, 4], [1, 3, 9]) == ((P, M, E, M), (P, E, W))


def test_a_repeated_proposal_counts_once() -> None:
    assert in_order([7, 1, 2], [7, 7, 7]) == ((P, M, M), (P, W, W))


def test_bag_is_shared_among_records() -> None:
    assert as_bag([[1, 2], [2, 3]], [2, 3, 8]) == (((M, E), (M, E)), (E, E, W))


@given(truth=TOKENS, guess=TOKENS)
def test_both_sides_agree_on_how_many_match(truth: list[int], guess: list[int]) -> None:
    ours, theirs = in_order(truth, guess)
    assert (len(ours), len(theirs)) == (len(truth), len(guess))
    assert ours.count(P) == theirs.count(P) == sum(a == b for a, b in zip(truth, guess, strict=False))
    assert ours.count(E) == theirs.count(E)
    assert ours.count(P) + ours.count(E) == sum(min(truth.count(t), guess.count(t)) for t in set(truth))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_read_back_by_pillow(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, channels), dtype=np.uint8)
    image = np.asarray(Image.open(io.BytesIO(png.encode(pixels)))).reshape(pixels.shape)
    assert (image == pixels).all()


def test_positions_stay_on_the_scale() -> None:
    assert svg.at(-5) == svg.at(0.0) == "3.00%"
    assert svg.at(1.0) == svg.at(7.0) == "97.00%"


def test_labels_of_drawings_are_escaped() -> None:
    drawing = svg.strip(value=0.5, low=0.1, high=0.9, prior=None, strong=True, failed=False, label='"><script>')
    assert "<script>" not in drawing


def test_thin_keeps_both_ends_and_order() -> None:
    line = [(float(i), float(i)) for i in range(5000)]
    short = svg.thin(line, 60)
    assert short[0] == line[0] and short[-1] == line[-1]
    assert list(short) == sorted(set(short))
    assert len(short) <= 120


@pytest.mark.parametrize(("value", "top"), [(31.5, 40.0), (0.013, 0.02), (1.0, 1.0), (0.0, 1.0), (95.0, 100.0)])
def test_nice_top(value: float, top: float) -> None:
    assert svg.nice_top(value) == pytest.approx(top)
