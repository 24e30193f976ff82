"""The test of proposed tokens: its chance against a derivation of its own, its rate over all tests and layers together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from gradleak.core.rng import derive
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import load_subject
from gradleak.span.likelihood import energy_test as module
from gradleak.span.likelihood.energy_test import TokenTest, energy_test, own_energy
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood

pytestmark = pytest.mark.oracle

WIDTH, COLUMNS = 32, 96


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
    yield Model(subject=load_subject("random:gpt2", classes=2, settings=sizes))


def places(model: Model) -> list[str]:
    """Maps behind the first attention."""
    first, second = model.subject.anatomy.blocks
    return [first.mlp_inputs[0].module, second.attention_inputs[0].module]


def preference(path: str, gradient: Tensor) -> GradientLikelihood:
    return GradientLikelihood(path=path, gradient=gradient, root=torch.eye(len(gradient)))


def noise(seed: int) -> Tensor:
    return torch.randn(WIDTH, COLUMNS, generator=derive(seed, "noise"), dtype=torch.float64)


def sequences(seed: int, *lengths: int) -> list[Tensor]:
    rng = derive(seed, "tokens")
    return [torch.randint(3, 200, (length,), generator=rng) for length in lengths]


def test_own_energy_is_that_of_the_part_outside_all_others() -> None:
    rng = derive(0, "energy")
    unit = torch.nn.functional.normalize(torch.randn(7, 20, generator=rng, dtype=torch.float64), dim=1)
    gradient = torch.randn(20, 50, generator=rng, dtype=torch.float64)
    for k in range(7):
        others = np.delete(unit.numpy(), k, axis=0)
        coefficients = np.linalg.lstsq(others.T, unit[k].numpy(), rcond=None)[0]
        rest = unit[k].numpy() - others.T @ coefficients
        wanted = float(((gradient.numpy().T @ rest) ** 2).sum() / (rest**2).sum())
        assert float(own_energy(unit, gradient)[k]) == pytest.approx(wanted, rel=1e-9)


def test_a_vector_that_depends_on_others_has_no_energy_of_its_own() -> None:
    unit = torch.nn.functional.normalize(torch.randn(3, 20, generator=derive(1, "e"), dtype=torch.float64), dim=1)
    dependent = torch.nn.functional.normalize(unit[:1] + unit[1:2], dim=1)
    energy = own_energy(torch.cat((unit, dependent)), torch.ones(20, 5, dtype=torch.float64))
    assert bool((energy[[0, 1, 3]] == 0).all()) and float(energy[2]) > 0


def test_the_chance_is_the_least_over_layers_times_their_number(model: Model) -> None:
    """Against least squares, one context after another, and scipy's χ²."""
    ids, paths, gradients = sequences(0, 4), places(model), [0.9 * noise(1), 0.9 * noise(2)]
    settled = energy_test(ids, [preference(p, g) for p, g in zip(paths, gradients, strict=True)], model, tests=1)
    assert settled is not None and settled.unexplained == 0
    least = np.ones(4)
    for path, gradient in zip(paths, gradients, strict=True):
        rows = linear_inputs(model.subject, [path], ids[0].unsqueeze(0))[path][0].double().numpy()
        for k in range(4):
            others = np.delete(rows, k, axis=0)
            rest = rows[k] - others.T @ np.linalg.lstsq(others.T, rows[k], rcond=None)[0]
            energy = ((gradient.numpy().T @ rest) ** 2).sum() / (rest**2).sum()
            least[k] = min(least[k], chi2.sf(energy, COLUMNS))
    assert settled.chance[0].tolist() == pytest.approx(np.minimum(2 * least, 1.0).tolist(), rel=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_noise_settles_a_token_at_the_stated_rate_over_all_tests(
    model: Model, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    """100 gradients of noise alone, nine tokens each, at 10 % for all of them together.

    More than 23 alarms have probability below 1e-4 at that rate. If tests or layers did not share it, 61 or 18 % more
    per layer would raise one.
    """
    monkeypatch.setattr(module, "FALSE_ALARM_RATE", 0.1)
    ids, paths = sequences(3, 5, 4), places(model)[:layers]
    alarms = 0
    for trial in range(100):
        asked = [preference(path, noise(1000 * layer + trial)) for layer, path in enumerate(paths)]
        settled = energy_test(ids, asked, model, tests=9)
        assert settled is not None
        alarms += any(bool(known.any()) for known in settled.known)
    assert 1 <= alarms <= 23


@pytest.mark.parametrize(("tests", "known"), [(1, True), (900, True), (1200, False)])
def test_a_token_is_settled_if_its_chance_is_below_the_rate_over_all_tests(
    model: Model, monkeypatch: pytest.MonkeyPatch, tests: int, known: bool
) -> None:
    """One token, tested against the rate that it would just pass or just miss with a thousand others."""
    ids, (path, _) = sequences(4, 1), places(model)
    plain = energy_test(ids, [preference(path, noise(7))], model, tests=1)
    assert plain is not None
    chance = float(plain.chance[0][0])
    monkeypatch.setattr(module, "FALSE_ALARM_RATE", chance * 1000)
    again = energy_test(ids, [preference(path, noise(7))], model, tests=tests)
    assert again is not None and bool(again.known[0][0]) is known


def test_no_answer_where_contexts_fill_the_space(model: Model) -> None:
    asked = [preference(places(model)[0], noise(0))]
    assert energy_test(sequences(0, 16, 15), asked, model, tests=1) is None
    assert energy_test(sequences(0, 15, 15), asked, model, tests=1) is not None


def test_sequences_end_at_their_last_settled_token() -> None:
    settled = TokenTest(
        known=(torch.tensor([False, True, False]), torch.tensor([False, False]), torch.tensor([True])),
        chance=(torch.zeros(3), torch.zeros(2), torch.zeros(1)),
        unexplained=0,
    )
    ids = [torch.tensor([4, 5, 6]), torch.tensor([7, 8]), torch.tensor([9])]
    assert [t.tolist() for t in settled.trimmed(ids)] == [[4, 5], [9]]
    assert settled.undecided == 1
