"""The batched searches against closed forms, scipy, and themselves one restart at a time."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy.optimize import rosen

from gradleak.core.attack import Clock, Status
from gradleak.matching.optimizers import LBFGS, Adam, Optimizer, Stopping

pytestmark = pytest.mark.oracle


def rosenbrock(variables):
    x = variables["inputs"]
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def starts(restarts: int = 3, size: int = 4) -> dict[str, torch.Tensor]:
    return {"inputs": torch.randn(restarts, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}


def test_lbfgs_finds_the_minimum_of_rosenbrock_and_reports_its_value() -> None:
    found = LBFGS(iterations=300).minimize(rosenbrock, starts(), stopping=Stopping(target=1e-16), clock=Clock())
    assert found.status is Status.CONVERGED
    assert found.value == pytest.approx(rosen(found.variables["inputs"].numpy()), rel=1e-9, abs=1e-30)
    np.testing.assert_allclose(found.variables["inputs"].numpy(), 1.0, atol=1e-6)


def test_lbfgs_solves_a_quadratic_like_the_linear_system() -> None:
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, target = root @ root.T + torch.eye(6), torch.randn(6, generator=generator, dtype=torch.float64)

    def quadratic(variables):
        x = variables["inputs"]
        return 0.5 * ((x @ matrix) * x).sum(1) - x @ target

    found = LBFGS(iterations=200).minimize(quadratic, starts(2, 6), stopping=Stopping(target=-1e9), clock=Clock())
    torch.testing.assert_close(found.variables["inputs"], torch.linalg.solve(matrix, target), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [LBFGS(iterations=25), Adam(iterations=25, lr=0.05)], ids=["lbfgs", "adam"])
def test_restarts_do_not_interact(optimizer: Optimizer) -> None:
    together = starts(3)
    alone = [
        optimizer.minimize(rosenbrock, {"inputs": row[None]}, stopping=Stopping(), clock=Clock())
        for row in together["inputs"]
    ]
    found = optimizer.minimize(rosenbrock, together, stopping=Stopping(), clock=Clock())
    best = min(alone, key=lambda one: one.value)
    assert found.value == pytest.approx(best.value, rel=1e-6)
    torch.testing.assert_close(found.variables["inputs"], best.variables["inputs"], rtol=1e-5, atol=1e-7)


def test_adam_keeps_inputs_in_their_box() -> None:
    found = Adam(iterations=200, lr=0.1, box=(-0.5, 0.5)).minimize(
        lambda v: (v["inputs"] - 3).square().sum(1), starts(), stopping=Stopping(), clock=Clock()
    )
    torch.testing.assert_close(found.variables["inputs"], torch.full((4,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", [LBFGS(iterations=10**6), Adam(iterations=10**6, lr=1e-9)], ids=["lbfgs", "adam"])
def test_the_clock_ends_a_search_that_would_not_end(optimizer: Optimizer) -> None:
    def slow(variables):
        return torch.exp(-1e-3 * variables["inputs"]).sum(1)

    begun = time.monotonic()
    found = optimizer.minimize(slow, starts(), stopping=Stopping(target=-1.0), clock=Clock(0.2))
    assert found.status in {Status.BUDGET_SPENT, Status.CONVERGED}
    assert time.monotonic() - begun < 2.0


def test_an_infinite_function_is_called_diverged_not_a_result() -> None:
    found = Adam(iterations=3, lr=0.1).minimize(
        lambda v: v["inputs"].sum(1) * float("inf"), starts(), stopping=Stopping(), clock=Clock()
    )
    assert found.status is Status.DIVERGED


def test_the_best_point_is_kept_even_if_the_search_walks_away() -> None:
    found = Adam(iterations=50, lr=5.0).minimize(
        lambda v: v["inputs"].square().sum(1), starts(1), stopping=Stopping(), clock=Clock()
    )
    assert found.value == pytest.approx(float(found.variables["inputs"].square().sum()))
    assert found.value == min(value for _, value in found.trace)
