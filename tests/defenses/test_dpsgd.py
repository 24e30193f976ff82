"""Each ``Guarantees`` bullet of ``dpsgd``, ``fed_cdp``, ``fed_alpha_cdp`` and ``fed_sdp``, and the claims that follow from them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.errors import SpecError
from gradleak.core.stage import Client, DataStage, Run, Stage
from gradleak.defenses.dpsgd import DPSGD
from gradleak.defenses.fed_alpha_cdp import FedAlphaCDP
from gradleak.defenses.fed_cdp import FedCDP
from gradleak.defenses.fed_sdp import FedSDP
from gradleak.harness.request.catalogue import make_stages
from gradleak.mechanics.client.clipping import ClipTensor, NoisySum
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.privacy.accounting import gaussian
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.claim import claim
from gradleak.privacy.plan.plan import Phase, Plan

pytestmark = pytest.mark.contract


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(
    records: int = 5, scale: float = 3.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = rng(seed)
    return {
        "matrix": (scale * torch.randn(records, 20, 30, generator=generator)).to(dtype),
        "vector": (scale * torch.randn(records, 40, generator=generator)).to(dtype),
    }


def test_dpsgd_is_the_microbatch_loop() -> None:
    """Against one backward pass per record, clipped and summed by hand."""
    subject = load_subject(
        "random:bert", settings={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    )
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    ids = torch.randint(5, 50, (4, 6), generator=rng())
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 4:] = False
    batch = Batch(inputs=ids, mask=mask, labels=torch.tensor([0, 1, 1, 0]))
    released = Channel(trainer=trainer, stages=(DPSGD(max_norm=0.4, noise_multiplier=0.0),)).observe(batch, rng())
    total: dict[str, torch.Tensor] = {}
    for i in range(4):
        length = int(mask[i].sum())
        one = Batch(inputs=ids[i : i + 1, :length], mask=mask[i : i + 1, :length], labels=batch.labels[i : i + 1])
        own = trainer.update(one, rng())
        for name, tensor in own.items():
            total[name] = total.get(name, torch.zeros_like(tensor)) + tensor * min(1.0, 0.4 / own.norm()) / 4
    for name, tensor in released.items():
        torch.testing.assert_close(tensor, total[name], rtol=1e-4, atol=1e-6)


def test_poisson_batches_divide_by_the_expected_size() -> None:
    stage = DPSGD(max_norm=1.0, noise_multiplier=0.0, sampling_rate=0.3)
    generator = rng(3)
    ones = {"w": torch.eye(50, dtype=torch.float64)}
    sums = torch.stack([stage.aggregate(ones, 0, generator)["w"] for _ in range(2000)])
    taken = (sums > 0).double()
    # Every coin by itself: mean .3 within 5 standard deviations of 2000 draws, and sizes that vary as a binomial does.
    assert bool(((taken.mean(0) - 0.3).abs() < 5 * math.sqrt(0.21 / 2000)).all())
    assert float(taken.sum(1).var()) == pytest.approx(50 * 0.21, rel=0.2)
    assert float(sums.max()) == pytest.approx(1 / 15)


def test_fixed_batches_have_one_size_and_every_record_its_turn() -> None:
    stage = DPSGD(max_norm=1.0, noise_multiplier=0.0, sampling_rate=0.3, batches="fixed")
    generator = rng(3)
    ones = {"w": torch.eye(10, dtype=torch.float64)}
    taken = torch.stack([stage.aggregate(ones, 0, generator)["w"] for _ in range(400)]) > 0
    assert bool((taken.sum(1) == 3).all()) and bool(taken.any(0).all())


def test_an_empty_poisson_batch_is_noise_alone() -> None:
    stage = DPSGD(max_norm=1.0, noise_multiplier=2.0, sampling_rate=1e-9)
    found = stage.aggregate({"w": torch.ones(4, 5000)}, 0, rng())["w"]
    assert float(found.std()) == pytest.approx(2.0 / 4e-9, rel=0.05)


def test_noise_is_fresh_in_every_step_and_tensor() -> None:
    stage, generator = DPSGD(max_norm=1.0, noise_multiplier=1.0), rng()
    first, second = (stage.aggregate({"a": torch.zeros(2, 9), "b": torch.zeros(2, 9)}, 0, generator) for _ in "12")
    assert not torch.equal(first["a"], second["a"]) and not torch.equal(first["a"], first["b"])


def exact(multiplier: float, releases: int = 1) -> float:
    return gaussian.epsilon(multiplier / math.sqrt(releases), 1e-5)


def test_claims_of_the_four() -> None:
    run = Run(steps=4, tensors=9)
    one = claim((DPSGD(max_norm=1.0, noise_multiplier=2.0),), run=run)
    assert one["epsilon"] == pytest.approx(exact(2.0, 4)) and one["unit"] == "one record"
    assert one["composition"] == "4 releases" and one["relation"].startswith("zero-out")
    per_tensor = claim((FedCDP(max_norm=1.0, noise_multiplier=6.0, scope="tensor"),), run=run)
    assert per_tensor["epsilon"] == pytest.approx(exact(2.0, 4))
    client = claim((FedSDP(max_norm=1.0, noise_multiplier=2.0),), run=run)
    assert client["epsilon"] == pytest.approx(exact(2.0)) and client["unit"].startswith("one client")
    nothing = claim((FedAlphaCDP(noise_multiplier=1e6),), run=run)
    assert nothing["epsilon"] is None and "follows the private data" in nothing["statement"]


def test_claims_of_sampled_batches() -> None:
    run = Run(steps=100, tensors=9)
    poisson = claim((DPSGD(max_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1),), run=run)
    plan = Plan(
        phases=(Phase(noise_multiplier=1.0, steps=100),), sampling="poisson", sampling_rate=0.1, sampled="records"
    )
    assert poisson["epsilon"] == pytest.approx(account(plan).epsilon) and "Poisson" in poisson["sampling"]
    fixed = claim((DPSGD(max_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1, batches="fixed"),), run=run)
    assert fixed["epsilon"] > 3 * poisson["epsilon"]
    assert fixed["epsilon"] == pytest.approx(exact(1.0, 100))


def test_the_claim_changes_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another clip in the place of the stage's own: what runs and what is claimed both follow, without a second edit."""
    stage, run = DPSGD(max_norm=1.0, noise_multiplier=3.0), Run(steps=1, tensors=9)
    before, sum_before = claim((stage,), run=run), stage.surrogate(rows(), 0)
    patched = NoisySum(clipping=ClipTensor(max_norm=1.0), noise_multiplier=3.0)
    monkeypatch.setattr(DPSGD, "mechanism", lambda self: patched)
    after, sum_after = claim((stage,), run=run), stage.surrogate(rows(), 0)
    assert before["epsilon"] == pytest.approx(exact(3.0)) and after["epsilon"] == pytest.approx(exact(1.0))
    assert not torch.equal(sum_before["vector"], sum_after["vector"])


@pytest.mark.parametrize(
    ("sizes", "steps", "update_level", "record_level"),
    [((3, 3, 3, 3), 1, 4, 4), ((2, 1), 1, 1, 2), ((5, 5, 4), 1, 2, 3), ((3, 3, 3, 3), 2, 1, 1), ((), 1, 1, 1)],
)
def test_secure_aggregation_adds_the_clients_noises(
    sizes: tuple[int, ...], steps: int, update_level: int, record_level: int
) -> None:
    """Σn²/max n², rounded down, for an average that is weighted by records; nothing after several local steps."""
    run = Run(steps=steps, tensors=9, sizes=sizes)
    join = make_stages("secure_aggregation(number=4)")
    chain = make_stages("clip(max_norm=1.0)+gaussian(noise_multiplier=1.0)")
    assert claim((*chain, *join), run=run)["epsilon"] == pytest.approx(exact(math.sqrt(update_level)))
    found = claim((DPSGD(max_norm=1.0, noise_multiplier=1.0), *join), run=run)
    assert found["epsilon"] == pytest.approx(exact(math.sqrt(record_level), steps))


def test_noise_behind_the_sum_is_not_multiplied() -> None:
    chain = make_stages("secure_aggregation(number=4)+clip(max_norm=1.0)+gaussian(noise_multiplier=1.0)")
    assert claim(chain, run=Run(sizes=(1, 1, 1, 1)))["epsilon"] == pytest.approx(exact(1.0))


class _Mixes(DataStage):
    def apply(self, client: Client, rng: torch.Generator) -> Any:
        return client.data


class _Peeks(FedSDP):
    """A stage on the client without a description of its own."""

    def describe(self, run: Run) -> Any:
        return None


@pytest.mark.parametrize(
    "stages",
    [
        (_Mixes(), DPSGD(max_norm=1.0, noise_multiplier=1.0)),
        (DPSGD(max_norm=1.0, noise_multiplier=1.0), _Peeks(max_norm=1.0, noise_multiplier=1.0)),
        (*make_stages("clip(max_norm=1.0)+gaussian(noise_multiplier=1.0)"), _Peeks(max_norm=1.0, noise_multiplier=1.0)),
    ],
    ids=["records are mixed before", "records are read after", "records are read after the noise"],
)
def test_what_touches_the_records_outside_the_mechanism_voids_the_claim(stages: tuple[Stage, ...]) -> None:
    assert claim(stages)["epsilon"] is None


def test_a_clip_of_the_whole_update_does_not_mind_mixed_records() -> None:
    stages = (_Mixes(), *make_stages("clip(max_norm=1.0)+gaussian(noise_multiplier=1.0)"))
    assert claim(stages)["epsilon"] == pytest.approx(exact(1.0))


@pytest.mark.parametrize(
    "spec",
    [
        "dpsgd(max_norm=0, noise_multiplier=1)",
        "dpsgd(max_norm=1, noise_multiplier=-1)",
        "dpsgd(max_norm=1, noise_multiplier=1, sampling_rate=2)",
        "dpsgd(max_norm=1, noise_multiplier=1, batches=shuffled)",
        "fed_cdp(max_norm=1, noise_multiplier=1, schedule=up)",
        "fed_cdp(max_norm=1, noise_multiplier=1, scope=layer)",
        "fed_cdp(max_norm=1, noise_multiplier=1, horizon=0)",
        "fed_alpha_cdp(noise_multiplier=1, low=3, high=2)",
        "fed_sdp(max_norm=1, noise_multiplier=1, noise_by=nobody)",
    ],
)
def test_wrong_arguments(spec: str) -> None:
    with pytest.raises(SpecError, match="out of range"):
        make_stages(spec)
