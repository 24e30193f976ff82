"""Opacus beside ours: the plan read from its objects, its clipped gradients, its noise and its ε."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from gradleak.core.errors import UsageError
from gradleak.defenses.dpsgd import DPSGD
from gradleak.integrations.opacus import plan_of
from gradleak.mechanics.client.clipping import ClipTensor, NoisySum, square_norms
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.lint import lint

# Of Opacus itself: it hooks modules whose inputs need no gradient.
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")]
RECORDS, VOCABULARY, WIDTH = 64, 20, 8


class ObservedLayer(nn.Module):
    """One of each kind of layer that a transformer has outside attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.norm(self.table(ids))).mean(1))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def private(loader: Callable[[TensorDataset], DataLoader[Any]] | None = None, **options: Any) -> tuple[Any, ...]:
    """Engine, model, optimizer and loader after ``make_private``."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randint(0, VOCABULARY, (RECORDS, 5)), torch.randint(0, 3, (RECORDS,)))
    model = ObservedLayer()
    with pytest.warns(UserWarning, match="Secure RNG"):
        engine = PrivacyEngine(accountant=options.pop("accountant", "prv"))
    settings = {"noise_multiplier": 1.0, "max_grad_norm": 0.5, **options}
    model, optimizer, batches = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(data, batch_size=16, shuffle=True) if loader is None else loader(data),
        **settings,
    )
    return engine, model, optimizer, batches


def train(model: Any, optimizer: Any, batches: Any, epochs: int) -> None:
    for _ in range(epochs):
        for ids, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids), labels).backward()
            optimizer.step()


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_a_trained_plan_is_read_and_epsilons_agree(accountant: str) -> None:
    engine, model, optimizer, batches = private(accountant=accountant)
    train(model, optimizer, batches, 3)
    plan = plan_of(engine, optimizer, batches, delta=1e-5)
    assert (plan.steps, plan.sampling, plan.sampling_rate, plan.records) == (12, "poisson", 0.25, RECORDS)
    assert plan.least_noise == 1.0 and plan.claimed is not None and plan.claimed.accountant == accountant
    found = account(plan)
    # PRV states the upper end of an estimate with an error of 0.01; RDP differs by the orders it is taken over.
    ours = found.epsilon if accountant == "prv" else found.rdp
    assert ours is not None and plan.claimed.epsilon == pytest.approx(
        ours, abs=0.0144 if accountant == "prv" else 0.02 * ours
    )
    assert lint(plan, found) == ()


def test_batches_without_poisson_sampling_are_caught() -> None:
    """The engine keeps its rate and claims the same ε; the lint reads the loader."""
    engine, model, optimizer, batches = private(poisson_sampling=False)
    train(model, optimizer, batches, 1)
    plan = plan_of(engine, optimizer, batches, delta=1e-5)
    assert plan.sampling == "shuffle"
    assert {finding.code for finding in lint(plan)} >= {"shuffled-as-poisson", "claim-too-low"}


def test_a_training_that_is_still_to_come() -> None:
    engine, _, optimizer, batches = private()
    plan = plan_of(engine, optimizer, batches, delta=1e-5, steps=100)
    assert (
        plan.steps == 100 and plan.sampling_rate == 0.25 and plan.claimed is not None and plan.claimed.epsilon is None
    )
    with pytest.raises(UsageError, match="made no step"):
        plan_of(engine, optimizer, batches, delta=1e-5)


def test_a_loader_that_does_not_say_how_it_draws() -> None:
    drawn = WeightedRandomSampler([1.0] * RECORDS, RECORDS)
    engine, _, optimizer, batches = private(
        lambda data: DataLoader(data, batch_size=16, sampler=drawn), poisson_sampling=False
    )
    with pytest.raises(UsageError, match="WeightedRandomSampler"):
        plan_of(engine, optimizer, batches, delta=1e-5, steps=4)
    assert plan_of(engine, optimizer, batches, delta=1e-5, steps=4, sampling="fixed").sampling == "fixed"


def test_adaptive_clipping_divides_by_a_private_size() -> None:
    engine, _, optimizer, batches = private(
        clipping="adaptive",
        target_unclipped_quantile=0.5,
        clipbound_learning_rate=0.2,
        max_clipbound=10.0,
        min_clipbound=0.1,
        unclipped_num_std=5.0,
    )
    found = lint(plan_of(engine, optimizer, batches, delta=1e-5, steps=10))
    assert [finding.code for finding in found] == ["random-divisor"]


@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_one_step_is_that_of_ours(clipping: str) -> None:
    """Without noise: per-example gradients by hooks, clipped and summed, against torch.func and our own clips."""
    limit = 0.01
    norms: Any = limit if clipping == "flat" else [limit] * len(list(ObservedLayer().parameters()))
    _, model, optimizer, _ = private(
        noise_multiplier=0.0, max_grad_norm=norms, clipping=clipping, poisson_sampling=False
    )
    ids, labels = torch.randint(0, VOCABULARY, (16, 5)), torch.randint(0, 3, (16,))
    nn.functional.cross_entropy(model(ids), labels).backward()
    optimizer.pre_step()
    plain = ObservedLayer()
    plain.load_state_dict(model._module.state_dict())

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(plain, parameters, (x.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, y.unsqueeze(0))

    weights = {name: p.detach() for name, p in plain.named_parameters()}
    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, ids, labels)
    if clipping == "flat":
        ours = DPSGD(max_norm=limit, noise_multiplier=0.0).aggregate(rows, 0, torch.Generator())
    else:
        ours = NoisySum(clipping=ClipTensor(max_norm=limit), noise_multiplier=0.0)(rows, 16, torch.Generator())
    for name, parameter in model._module.named_parameters():
        # Opacus divides by the norm plus 1e-6, which shortens example i's share, of norm C, by a factor 1e-6/‖g_i‖ at most.
        norms = square_norms(rows if clipping == "flat" else {name: rows[name]}).sqrt()
        most = float((limit * 1e-6 / norms).mean())
        assert most < 1e-4 * limit
        assert float((parameter.grad - ours[name]).norm()) <= most + 1e-12


def test_noise_is_what_the_plan_says() -> None:
    """A step of equal records against one without noise: its standard deviation is z·C over the expected batch."""
    _, model, optimizer, _ = private(noise_multiplier=3.0, poisson_sampling=False)
    nn.functional.cross_entropy(
        model(torch.zeros(16, 5, dtype=torch.long)), torch.zeros(16, dtype=torch.long)
    ).backward()
    optimizer.pre_step()
    # Rows of tokens that nobody used hold noise alone.
    noise = model._module.table.weight.grad[1:].flatten()
    wanted = 3.0 * 0.5 / 16
    assert abs(float(noise.std()) / wanted - 1) < 4 / math.sqrt(2 * len(noise))
