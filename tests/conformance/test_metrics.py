"""What every metric of the catalogue keeps, found by itself: adding a metric adds it to these tests."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.core.errors import DataError
from gradleak.core.metric import Comparison, Metric
from gradleak.harness.request import catalogue

NAMES = catalogue.names("metrics")
WORDS = ("the", "invoice", "is", "due", "on", "monday", "please", "pay", "it", "today", "thanks", "bob")


def metric(name: str) -> Metric:
    return catalogue.find("metrics", name)()


def decode(ids: Tensor) -> str:
    return " ".join(WORDS[token] for token in ids.tolist())


def no_text(ids: Tensor) -> str:
    raise DataError("images have no text")


def texts() -> tuple[Tensor, ...]:
    return tuple(torch.tensor(tokens) for tokens in ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9], [6, 7, 0, 1, 10]))


def images() -> tuple[Tensor, ...]:
    return tuple(torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def pairs(
    modality: str, guess: tuple[Tensor | None, ...], *, ordered: bool = True, decoys: tuple[Tensor, ...] | None = None
) -> Comparison:
    text = modality == "text"
    truth = texts() if text else images()
    others = (torch.tensor([11, 10]), torch.tensor([3, 1, 9])) if text else tuple(torch.rand(2, 3, 12, 12).double())
    return Comparison(
        truth=truth,
        guess=guess,
        aligned=tuple(zip(truth, guess, strict=True)),
        extras=(),
        ordered=ordered,
        decoys=others if decoys is None else decoys,
        special_ids=frozenset(),
        vocab_size=len(WORDS) if text else 0,
        decode=decode if text else no_text,
    )


def cases() -> list[tuple[str, str]]:
    return [(name, modality) for name in NAMES for modality in sorted(metric(name).modalities)]


def truth_of(modality: str) -> tuple[Tensor, ...]:
    return texts() if modality == "text" else images()


def wrong(modality: str) -> tuple[Tensor, ...]:
    if modality == "text":
        return (torch.tensor([11, 11]), torch.tensor([11]), torch.tensor([11, 8, 11]))
    return tuple(1.0 - image for image in images())


def test_the_promised_metrics_are_there() -> None:
    text = {"token_recall", "token_accuracy", "exact_match", "rouge1", "rouge2", "rougeL", "identification_rank"}
    image = {"mse", "psnr", "ssim", "identification_rank"}
    for modality, promised in (("text", text), ("image", image)):
        assert promised <= {name for name in NAMES if modality in metric(name).modalities}


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_measures(name: str) -> None:
    found = metric(name)
    assert found.summary
    assert found.summary[0].islower() or found.summary[0].isupper()
    assert found.modalities
    assert found.modalities <= {"text", "image"}
    assert type(found).__doc__
    assert not found.bounded or (found.higher_is_better and found.best == 1.0)


@pytest.mark.parametrize(("name", "modality"), cases())
def test_a_perfect_reconstruction_has_the_best_value(name: str, modality: str) -> None:
    values = metric(name).values(pairs(modality, truth_of(modality)))
    assert values == pytest.approx([metric(name).best] * 3, abs=1e-9)


@pytest.mark.parametrize(("name", "modality"), cases())
def test_a_wrong_reconstruction_has_a_worse_finite_value(name: str, modality: str) -> None:
    found = metric(name)
    values = found.values(pairs(modality, wrong(modality)))
    assert len(values) == 3
    for value in values:
        assert math.isfinite(value)
        assert value < found.best if found.higher_is_better else value > found.best
        assert not found.bounded or 0.0 <= value <= 1.0


@pytest.mark.parametrize(("name", "modality"), cases())
def test_a_missing_proposal_is_worst_or_without_value(name: str, modality: str) -> None:
    found = metric(name)
    values = found.values(pairs(modality, (None,) * 3))
    if found.bounded:
        assert values == [0.0] * 3
    elif values:
        assert values == [found.chance(pairs(modality, (None,) * 3))] * 3


@pytest.mark.parametrize(("name", "modality"), cases())
def test_the_chance_level_is_finite_and_not_better_than_perfect(name: str, modality: str) -> None:
    found = metric(name)
    chance = found.chance(pairs(modality, truth_of(modality)))
    if chance is not None:
        assert math.isfinite(chance)
        assert chance < found.best if found.higher_is_better else chance > found.best


@pytest.mark.parametrize(("name", "modality"), cases())
def test_values_are_a_function_of_the_comparison(name: str, modality: str) -> None:
    guess = wrong(modality)
    kept = tuple(record.clone() for record in guess)
    decoys = truth_of(modality)[:1]
    first = metric(name).values(pairs(modality, guess, decoys=decoys))
    second = metric(name).values(pairs(modality, guess, decoys=decoys))
    assert first == second
    assert all(torch.equal(left, right) for left, right in zip(guess, kept, strict=True))


@pytest.mark.parametrize(
    "name", [name for name in NAMES if metric(name).bags == "scored" and "text" in metric(name).modalities]
)
def test_a_metric_without_order_takes_a_bag(name: str) -> None:
    found = metric(name)
    bag = torch.cat(texts())
    perfect = found.values(pairs("text", (bag, None, None), ordered=False))
    flipped = found.values(pairs("text", (bag.flip(0), None, None), ordered=False))
    assert perfect == flipped == [found.best] * 3
    nothing = found.values(pairs("text", (None, None, None), ordered=False))
    assert all(value < found.best if found.higher_is_better else value > found.best for value in nothing)
