"""Matrix-free Gauss–Newton against dense differences and direct solves, and its speed of convergence on bare attention."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from gradleak.attacks.attention_exact.refine import AttentionMatching
from gradleak.attacks.gauss_newton import GaussNewton
from gradleak.core.batch import Batch
from gradleak.core.errors import SpecError
from gradleak.core.knowledge import View
from gradleak.matching import engine as inversion
from gradleak.matching.gauss_newton import _Problem
from gradleak.matching.optimizers import flatten, unflatten
from gradleak.mechanics.attention.softmax import Heads
from gradleak.mechanics.client.outer_products import FactoredMatrix
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.least_squares import LevenbergMarquardt
from gradleak.models import load_subject

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


@pytest.mark.parametrize(
    ("model", "loss"), [("bert", "classification"), ("gpt2", "causal-lm"), ("vit", "classification")]
)
def test_slope_and_curvature_are_those_of_the_objective(model: str, loss: str) -> None:
    """vᵀJᵀJv against central differences of the whole dense update, and the slope against those of the value."""
    vision = model == "vit"
    extra = {"image_size": 8, "patch_size": 4} if vision else {"vocab_size": 300, "max_position_embeddings": 16}
    subject = load_subject(f"random:{model}", loss=loss, settings=SMALL | extra)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    inputs = torch.rand(1, 3, 8, 8, generator=rng(0)) if vision else torch.randint(5, 200, (1, 4), generator=rng(0))
    mask = torch.ones(inputs.shape[: 1 if vision else 2], dtype=torch.bool)
    labels = inputs if loss == "causal-lm" else torch.tensor([1])
    update = trainer.update(Batch(inputs=inputs, mask=mask, labels=labels), rng(0))
    facts = {"subject": subject, "trainer": trainer, "batch_size": 1, "seq_len": None if vision else 4}
    view = View(declared=inversion.NEEDS | inversion.USES, _facts=facts)
    parts = GaussNewton().parts("text")
    function = inversion.objective_function(inversion.pose(update, view, parts), parts)
    start = {"inputs": torch.randn(2, *function.problem.space.shape, generator=rng(1))}
    problem = _Problem(function=function, shapes={"inputs": start["inputs"].shape}, inner=5, tolerance=0.1)
    x = flatten(start)
    v, step = torch.randn(x.shape, generator=rng(2)), 1e-3

    def dense(x: Tensor) -> Tensor:
        found = function.simulated(unflatten(x, problem.shapes))
        flat = [
            (t.dense() if isinstance(t, FactoredMatrix) else t).detach().flatten(1).double() for t in found.values()
        ]
        return torch.cat(flat, 1)

    local = problem.at(x)
    tangent = (dense(x + step * v) - dense(x - step * v)) / (2 * step)
    curvature = (v * local.normal(v)).sum(1).double()
    wanted = 2 * function.weight(function.simulated(start)) * tangent.square().sum(1)
    assert torch.allclose(curvature, wanted, rtol=5e-3)
    slope = (problem.value(x + step * v) - problem.value(x - step * v)) / (2 * step)
    assert torch.allclose((local.slope * v).sum(1), slope, rtol=2e-2, atol=1e-3 * float(slope.abs().max()))
    assert torch.allclose(local.value, problem.value(x), rtol=1e-5)
    residual = (
        local.normal(local.step(torch.full((2,), 1e-2))) + 1e-2 * local.step(torch.full((2,), 1e-2)) + local.slope
    )
    assert float((residual.norm(dim=1) / local.slope.norm(dim=1)).max()) < 1.0, "a step solves part of the system"


def instance(n: int, d: int, trials: int, seed: int = 0) -> tuple[AttentionMatching, Tensor]:
    g = rng(seed)
    x, b, w, v = (
        torch.randn(*shape, dtype=torch.float64, generator=g)
        for shape in ((trials, n, d), (trials, n, d), (trials, 1, d, d), (trials, 1, d, d))
    )
    eye = torch.eye(d, dtype=torch.float64).expand(trials, 1, d, d)
    heads = Heads(query=w / math.sqrt(d), key=eye, value=v / math.sqrt(d), output=eye, scale=1 / math.sqrt(d))
    observed = heads.layer().at(x, b).gradient().flat()
    return AttentionMatching(heads=heads, observed=observed, seq=n, out=d, targets=b, collapsed=True), x.flatten(1)


@pytest.mark.parametrize(("n", "d"), [(4, 8), (8, 8), (8, 16)])
def test_gauss_newton_is_quadratic_near_the_truth(n: int, d: int) -> None:
    """From 5 % away, undamped: below 1e-10 within 6 steps, 20 times of 20, and errors square once they are small."""
    problem, truth = instance(n, d, 20)
    away = normal(20, n * d, seed=5)
    start = truth + 0.05 * away * (truth.norm(dim=1) / away.norm(dim=1))[:, None]
    errors: list[Tensor] = []

    def watch(iteration: int, value: Tensor, x: Tensor) -> bool:
        errors.append((x - truth).norm(dim=1) / truth.norm(dim=1))
        return False

    found, _ = LevenbergMarquardt(iterations=6, damping=0.0).run(problem, start, watch)
    errors.append((found - truth).norm(dim=1) / truth.norm(dim=1))
    assert float(errors[-1].max()) < 1e-10
    for before, after in itertools.pairwise(errors[1:5]):
        measurable = (before < 1e-2) & (after > 1e-12)
        assert bool((after[measurable] < 100 * before[measurable] ** 2 + 1e-12).all())


def test_approximate_newton_contracts_as_the_theory_of_the_founding_paper_says() -> None:
    """With a normal matrix that is off by ±1 % in spectrum, steps 2 to 6 shrink the error by 0.4 or better."""
    problem, truth = instance(4, 8, 10)
    away = normal(10, 32, seed=6)
    x = truth + 0.003 * away * (truth.norm(dim=1) / away.norm(dim=1))[:, None]
    twist = torch.linalg.qr(normal(10, 32, 32, seed=7))[0]
    off = 1 + 0.01 * (2 * torch.rand(10, 32, dtype=torch.float64, generator=rng(8)) - 1)
    errors = [(x - truth).norm(dim=1)]
    for _ in range(6):
        local = problem.at(x)
        values, vectors = torch.linalg.eigh(local.normal)
        root = vectors @ torch.diag_embed(values.clamp_min(0).sqrt()) @ vectors.mT
        near = root @ (twist @ torch.diag_embed(off) @ twist.mT) @ root
        x = x - torch.linalg.solve(near, local.slope)
        errors.append((x - truth).norm(dim=1))
    for before, after in itertools.pairwise(errors[1:]):
        measurable = after > 1e-12 * truth.norm(dim=1)
        assert bool((after[measurable] <= 0.4 * before[measurable]).all())


def test_tokens_subspace_holds_the_truth() -> None:
    problem, truth = instance(4, 8, 3)
    values = problem.observed[:, 64:].view(3, 8, 8)
    basis = torch.linalg.svd(values)[0][:, :, :4].mT
    narrow = AttentionMatching(
        heads=problem.heads,
        observed=problem.observed,
        seq=4,
        out=8,
        targets=problem.targets,
        basis=basis,
        collapsed=True,
    )
    assert narrow.unknowns == 16
    y = (truth.view(3, 4, 8) @ basis.mT).flatten(1)
    assert float(narrow.value(y).max()) < 1e-20
    local, v = narrow.at(y), normal(3, 16, seed=1)
    step = 1e-6
    tangent = (narrow.gradient_of(y + step * v) - narrow.gradient_of(y - step * v)) / (2 * step)
    assert torch.allclose((local.jacobian @ v[..., None])[..., 0], tangent, rtol=1e-6, atol=1e-6)


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(SpecError, match="at least 1"):
        GaussNewton(inner=0)
