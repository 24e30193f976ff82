"""The marginal likelihood of records: strengths read out of noise against planted ones, projections against plain algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gradleak.core.rng import derive
from gradleak.mechanics.probing.model import Model
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood
from gradleak.span.likelihood.marginal import Conditioned, Evidence, Signal
from tests.support.tiny import text_model

pytestmark = pytest.mark.oracle


def planted(strength: float, features: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A direction with that squared strength in noise of size one, and the direction itself."""
    rng = derive(seed, "planted")
    u, v = (
        torch.nn.functional.normalize(torch.randn(n, generator=rng, dtype=torch.float64), dim=0)
        for n in (features, columns)
    )
    noise = torch.randn(features, columns, generator=rng, dtype=torch.float64)
    return strength * torch.outer(u, v) + noise, u


def place(gradient: Tensor, path: str = "x") -> GradientLikelihood:
    return GradientLikelihood(path=path, gradient=gradient, root=torch.eye(len(gradient)))


@pytest.mark.parametrize("times_edge", [1.5, 3.0])
def test_the_strength_and_the_share_of_a_planted_direction_come_back(times_edge: float) -> None:
    """Mean of 40 draws of ‖θ c u‖² against θ² c² of what was planted; standard error below 3 %, so 15 % is five of them."""
    features, columns = 60, 240
    theta2 = (times_edge * (features * columns) ** 0.25) ** 2
    share = (theta2**2 - features * columns) / (theta2 * (theta2 + features))
    seen, overlap = [], []
    for seed in range(40):
        gradient, u = planted(math.sqrt(theta2), features, columns, seed)
        signal = Signal.of(place(gradient))
        sizes = signal.directions.square().sum(0)
        seen.append(float(sizes.max()))
        top = torch.nn.functional.normalize(signal.directions[:, sizes.argmax()], dim=0)
        overlap.append(float((top @ u) ** 2))
    assert np.mean(seen) == pytest.approx(theta2 * share, rel=0.15)
    assert np.mean(overlap) == pytest.approx(share, rel=0.15)


def test_noise_alone_has_hardly_any_direction() -> None:
    """The edge is that of the largest singular value; above it lies noise in a sixth of all draws, then by little."""
    found = [Signal.of(place(planted(0.0, 60, 240, seed)[0])) for seed in range(30)]
    assert sum(signal.directions.shape[1] for signal in found) <= 15
    assert all(signal.price < 0.5 for signal in found)


def score_by_hand(signal: Signal, rows: Tensor, others: Tensor) -> float:
    """½ Σ ‖P u‖² with P onto the part of the rows outside the others, less the price of each row."""
    outside = rows.numpy()
    if len(others):
        q, _ = np.linalg.qr(others.numpy().T)
        outside = outside - outside @ q @ q.T
    q, _ = np.linalg.qr(outside.T)
    return float(((q.T @ signal.directions.numpy()) ** 2).sum() / 2 - signal.price * len(rows))


@pytest.mark.parametrize("given", [0, 3])
def test_the_score_is_what_the_records_own_span_holds_of_the_signal(given: int) -> None:
    rng = derive(7, "score")
    signal = Signal(path="x", directions=torch.randn(20, 4, generator=rng, dtype=torch.float64), price=0.3)
    others = torch.randn(given, 20, generator=rng, dtype=torch.float64)
    rows = torch.randn(6, 5, 20, generator=rng, dtype=torch.float64)
    found = Conditioned.of(signal, [others] if given else []).score(rows)
    assert found.tolist() == pytest.approx([score_by_hand(signal, one, others) for one in rows])


def test_rows_one_after_the_other_add_up_to_the_whole() -> None:
    rng = derive(8, "extend")
    signal = Signal(path="x", directions=torch.randn(20, 4, generator=rng, dtype=torch.float64), price=0.2)
    left = Conditioned.of(signal, [torch.randn(3, 20, generator=rng, dtype=torch.float64)])
    rows = torch.nn.functional.normalize(torch.randn(1, 6, 20, generator=rng, dtype=torch.float64), dim=-1)
    own, total = rows.new_zeros(1, 0, 20), 0.0
    for k in range(6):
        added, unit = left.extend(rows[:, k : k + 1], own)
        total, own = total + float(added), torch.cat((own, unit), dim=1)
    assert total == pytest.approx(float(left.score(rows)))


def test_a_row_that_is_there_already_adds_nothing() -> None:
    rng = derive(9, "again")
    signal = Signal(path="x", directions=torch.randn(20, 4, generator=rng, dtype=torch.float64), price=0.2)
    rows = torch.nn.functional.normalize(torch.randn(2, 20, generator=rng, dtype=torch.float64), dim=-1)
    left = Conditioned.of(signal, [rows])
    assert float(left.score(rows[:1].unsqueeze(0))) == 0.0
    added, unit = left.extend(rows[None, :1], rows.new_zeros(1, 0, 20))
    assert float(added) == 0.0 and float(unit.abs().max()) == 0.0


def test_true_records_are_likelier_than_others_and_places_add_up() -> None:
    model = Model(subject=text_model("gpt2"))
    first, second = model.subject.anatomy.blocks
    paths = [first.mlp_inputs[0].module, second.attention_inputs[0].module]
    rng = derive(10, "evidence")
    true, wrong = torch.randint(5, 200, (2, 2, 6), generator=rng)
    silent = Evidence(
        signals=tuple(Signal(path=p, directions=torch.zeros(32, 0).double(), price=0.0) for p in paths), model=model
    )
    inputs = silent.rows(true)
    signals = []
    for path, rows in zip(paths, inputs, strict=True):
        errors = 40 * torch.randn(12, 96, generator=rng, dtype=torch.float64)
        gradient = rows.flatten(0, 1).T @ errors + torch.randn(32, 96, generator=rng, dtype=torch.float64)
        signals.append(Signal.of(place(gradient, path)))
    evidence = Evidence(signals=tuple(signals), model=model)

    def together(ids: Tensor) -> float:
        rows = evidence.rows(ids)
        return evidence.together([[part[k] for part in rows] for k in range(len(ids))])

    assert together(true) > together(wrong) + 10
    one, other = evidence.split(1)
    rows = evidence.rows(true)
    parts = [e.together([[part[k] for part in r] for k in range(2)]) for e, r in ((one, rows[:1]), (other, rows[1:]))]
    assert sum(parts) == pytest.approx(together(true))
