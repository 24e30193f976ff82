"""Private data leaves the folder redacted, unless it is asked for: text, ids and pixels, also of records that were missed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from gradleak.core.errors import DataError
from gradleak.core.record import Record
from gradleak.report.conclusions.pooling import Cell, cells
from gradleak.report.page.coloring import Match
from gradleak.report.page.evidence import RECORDS_PER_CELL, Budget, CellEvidence, cell_evidence

pytestmark = pytest.mark.contract


@pytest.fixture
def shown(tmp_path: Path, make_record: Callable[..., Record]) -> Callable[..., CellEvidence]:
    """What the page shows of one cell whose record has these tensors and this metadata."""

    def show(
        tensors: dict[str, np.ndarray], *, reveal: bool, budget: int = 10**6, status: str = "CONVERGED", **metadata: str
    ) -> CellEvidence:
        base = make_record()
        record = make_record(cell="one", status={**base.status, "name": status})
        (tmp_path / "tensors").mkdir(exist_ok=True)
        save_file(tensors, tmp_path / "tensors" / "one.safetensors", metadata)
        cell: Cell = cells([record])[0]
        return cell_evidence(tmp_path, cell, reveal=reveal, budget=Budget(left=budget))

    return show


def picture(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize("guessed", [True, False], ids=["recovered", "missed"])
def test_no_picture_is_shown_unless_revealed(shown: Callable[..., CellEvidence], guessed: bool) -> None:
    tensors = {"truth.0": picture(0, 3, 8, 8)} | ({"guess.0": picture(1, 3, 8, 8)} if guessed else {})
    hidden = shown(tensors, reveal=False, modality="image").pairs
    assert [pair.images for pair in hidden] == [(None, None)]
    (pair,) = shown(tensors, reveal=True, modality="image").pairs
    assert pair.images is not None and pair.images[0] is not None and (pair.images[1] is not None) is guessed
    assert (pair.summary == "no proposal for this record") is not guessed


def test_a_revealed_picture_is_the_picture(shown: Callable[..., CellEvidence]) -> None:
    truth = picture(0, 3, 8, 6)
    (pair,) = shown({"truth.0": truth, "guess.0": truth}, reveal=True, modality="image").pairs
    assert pair.images is not None and pair.images[0] is not None and pair.images[0] == pair.images[1]
    data = base64.b64decode(pair.images[0].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), np.round(255 * truth).astype(np.uint8).transpose(1, 2, 0))
    assert pair.summary == "identical"


def test_the_quality_of_a_picture_is_its_ratio_of_signal_to_noise(shown: Callable[..., CellEvidence]) -> None:
    truth = np.full((1, 4, 4), 0.5, np.float32)
    (pair,) = shown({"truth.0": truth, "guess.0": truth + np.float32(0.1)}, reveal=False, modality="image").pairs
    assert pair.summary == "20.0 dB PSNR"


@pytest.mark.parametrize("ordered", ["true", "false"])
def test_no_text_and_no_id_is_shown_unless_revealed(shown: Callable[..., CellEvidence], ordered: str) -> None:
    ids = np.array([771001, 771014, 771027])
    words = ["wyrm", "qu", "blorvexation"]
    tensors = {"truth.0": ids, "truth.1": ids[:2], "guess.0": ids[[0, 2, 1]]}
    pieces = {"pieces.truth.0": json.dumps(words), "pieces.guess.0": json.dumps([words[0], words[2], words[1]])}
    for metadata in (pieces, {}):
        hidden = repr(shown(tensors, reveal=False, ordered=ordered, modality="text", **metadata))
        assert not any(word in hidden for word in (*words, "7710"))
        open_page = repr(shown(tensors, reveal=True, ordered=ordered, modality="text", **metadata))
        assert ("blorvexation" if metadata else "771027") in open_page


def test_colors_are_the_same_redacted_or_not(shown: Callable[..., CellEvidence]) -> None:
    tensors = {"truth.0": np.array([1, 2, 3, 4]), "guess.0": np.array([1, 3, 9])}
    for reveal in (False, True):
        (pair,) = shown(tensors, reveal=reveal, modality="text").pairs
        assert [token.mark for token, _ in pair.tokens if token] == [
            Match.PLACE, Match.MISSING, Match.ELSEWHERE, Match.MISSING,
        ]  # fmt: skip
        assert pair.summary == "1 of 4 in place, 1 elsewhere, 2 missing, 1 wrong"


def test_control_and_bidirectional_characters_are_replaced(shown: Callable[..., CellEvidence]) -> None:
    pieces = {"pieces.truth.0": json.dumps(["\u202ea\u0007", "\n", "  "])}
    (pair,) = shown({"truth.0": np.array([5, 6, 7])}, reveal=True, modality="text", **pieces).pairs
    assert [token.text for token, _ in pair.tokens if token] == ["\ufffda\ufffd", "⏎", "␣"]


def test_the_wrong_tokens_that_an_attack_expects_stand_beside_those_there_are(
    shown: Callable[..., CellEvidence],
) -> None:
    tensors = {
        "truth.0": np.array([1, 2]),
        "guess.0": np.array([1, 3]),
        "confidence.0": np.array([0.9, 0.6]),
    }
    result = shown(tensors, reveal=False, modality="text")
    assert result.claims and result.pairs[0].summary.endswith("by its own confidence 0.5 wrong")
    assert [guess.sure for _, guess in result.pairs[0].tokens if guess] == [0.9, 0.6]


def test_only_the_first_records_are_shown_and_all_are_counted(shown: Callable[..., CellEvidence]) -> None:
    tensors = {f"truth.{i}": np.array([i]) for i in range(RECORDS_PER_CELL + 3)}
    result = shown(tensors, reveal=False, modality="text")
    assert len(result.pairs) == RECORDS_PER_CELL and result.total == RECORDS_PER_CELL + 3 and not result.dropped


def test_a_spent_budget_drops_records_and_says_so(shown: Callable[..., CellEvidence]) -> None:
    tensors = {f"truth.{i}": np.arange(10) for i in range(3)}
    one = shown({"truth.0": np.arange(10)}, reveal=False, modality="text").pairs[0].cost()
    result = shown(tensors, reveal=False, modality="text", budget=2 * one)
    assert len(result.pairs) == 2 and result.dropped and result.total == 3


def test_an_attack_without_result_has_no_evidence(shown: Callable[..., CellEvidence]) -> None:
    assert shown({"truth.0": np.array([1])}, reveal=True, modality="text", status="NOT_APPLICABLE") == CellEvidence()


def test_files_that_do_not_fit_are_refused(shown: Callable[..., CellEvidence]) -> None:
    with pytest.raises(DataError, match="2 pieces of text for the 3 tokens"):
        shown({"truth.0": np.arange(3)}, reveal=False, modality="text", **{"pieces.truth.0": json.dumps(["a", "b"])})
    claims = {"truth.0": np.arange(3), "guess.0": np.arange(3), "confidence.0": np.ones(2)}
    with pytest.raises(DataError, match="no claim for every token"):
        shown(claims, reveal=False, modality="text")
