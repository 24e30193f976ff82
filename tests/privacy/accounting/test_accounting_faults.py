"""Plans whose ε was once printed wrong, with the right values, and ten further plans of each kind held against the independent
accountant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gradleak.core.errors import UsageError
from gradleak.core.stage import Run
from gradleak.defenses.dpsgd import DPSGD
from gradleak.privacy.accounting import gaussian
from gradleak.privacy.accounting.accountant import Guarantee, account
from gradleak.privacy.lint import lint
from gradleak.privacy.plan.file import make_plan
from tests.support.random_plans import understated

pytestmark = pytest.mark.oracle

BASE: dict[str, Any] = {"noise_multiplier": 1.0, "sampling_rate": 0.01, "steps": 1000}
SERVER = "server_sees_each_update"


def of(**changes: Any) -> Guarantee:
    return account(make_plan(BASE | changes))


def test_sampling_of_records_hides_no_client() -> None:
    """1.828 was printed for one client with all its records, which is in each of the 1000 releases."""
    for view in ("final_model", SERVER):
        guarantee = of(clip="update", view=view, sampled="records")
        assert guarantee.epsilon == pytest.approx(633.9, abs=0.05)
        assert guarantee.basis.unit == "one client, all its records"


def test_laplace_noise_of_many_clients_is_not_gaussian() -> None:
    """Pure ε = 0.1 was printed. A sum of 100 Laplace variables moved by 1 has δ(0.1) = 2.6e-3; 1 is what one client's noise gives."""
    guarantee = of(
        mechanism="laplace", view="secure_aggregation", clients=100, steps=1, sampling="none", sampling_rate=1.0
    )
    assert guarantee.epsilon == 1.0
    # The density of the sum by Fourier inversion: the characteristic function of one is 1/(1 + t²).
    x = np.linspace(-200, 200, 40_001)
    t = np.linspace(0.0, 3.0, 6001)
    characteristic = (1 + t**2) ** -100.0
    density = np.array([np.trapezoid(np.cos(t * place) * characteristic, t) for place in x[20_000:]]) / np.pi
    density = np.concatenate([density[:0:-1], density])
    moved = np.roll(density, 100)
    assert np.trapezoid(np.maximum(moved - np.exp(0.1) * density, 0.0), x) == pytest.approx(2.6e-3, abs=1e-4)
    for epsilon, above in ((0.2, True), (0.25, False), (guarantee.epsilon, False)):
        assert (np.trapezoid(np.maximum(moved - np.exp(epsilon) * density, 0.0), x) > 1e-5) == above


def test_participations_are_counted_by_their_tail() -> None:
    """17.86 was printed, with the mean number of participations; averaged over the coins δ there is 6.1e-4."""
    guarantee = of(view=SERVER, sampled="clients", clip="update")
    assert guarantee.epsilon == pytest.approx(23.39, abs=0.01)
    counts = np.arange(1, 61)
    deltas = np.array([gaussian.delta(n**-0.5, 17.857) for n in counts])
    assert stats.binom.pmf(counts, 1000, 0.01) @ deltas == pytest.approx(6.1e-4, abs=1e-5)


def test_a_lower_bound_of_less_than_an_epoch() -> None:
    """9.94 was certain for one step of 100,000 batches, where the total variation is at most 1e-5; a true claim of 1 failed the lint."""
    table = {"noise_multiplier": 0.5, "sampling": "shuffle", "sampling_rate": 1e-5, "steps": 1}
    assert of(**table).lower == 0.0
    assert "claim-too-low" not in {finding.code for finding in lint(make_plan(table | {"claimed": {"epsilon": 1.0}}))}


@pytest.mark.parametrize("sampling_rate", [0.5, 1 / 3, 0.26])
def test_a_lower_bound_never_exceeds_epsilon(sampling_rate: float) -> None:
    """551 and a lower bound of 600 were printed."""
    guarantee = of(noise_multiplier=0.0342, sampling="shuffle", sampling_rate=sampling_rate, steps=2)
    assert guarantee.lower is not None and 0 < guarantee.lower <= guarantee.epsilon


def test_fixed_batches_under_zero_out() -> None:
    """633.9 was printed for the default relation; an exchange, which is more, has at most 20.99."""
    zeroed, exchanged = of(sampling="fixed"), of(sampling="fixed", relation="replace_one")
    assert zeroed.lower is not None and zeroed.lower <= zeroed.epsilon <= exchanged.epsilon <= 20.99
    assert zeroed.epsilon == pytest.approx(10.50, abs=0.02)
    assert exchanged.epsilon == pytest.approx(14.82, abs=0.02)


@pytest.mark.parametrize(("delta", "most"), [(1e-13, 2.323), (1e-15, 2.707), (1e-18, 3.283)])
def test_a_small_delta_is_no_infinity(delta: float, most: float) -> None:
    """5.489 and "no guarantee" were printed at 1e-13 and 1e-15, where the distribution of losses had been cut off."""
    guarantee = of(sampling_rate=0.001, steps=10_000, delta=delta)
    assert guarantee.method == "rdp" and 1.0 < guarantee.epsilon <= most


def test_clip_per_tensor_says_how_many() -> None:
    with pytest.raises(UsageError, match="clip tensor needs tensors"):
        of(clip="tensor", steps=1, sampling="none", sampling_rate=1.0)


def test_dpsgd_describes_the_batches_that_it_draws() -> None:
    """A rate of 0.22 of 7 records draws 2 of them: 12.76 was printed where Rényi accounting at 2/7 says 16.64."""
    stage = DPSGD(max_norm=1.0, noise_multiplier=2.0, sampling_rate=0.22, batches="fixed")
    plan = stage.describe(Run(steps=20, sizes=(7,)))
    assert plan["sampling_rate"] == 2 / 7
    # Of clients of several sizes the largest share counts; of a client of unknown size every record may be drawn.
    assert stage.describe(Run(steps=20, sizes=(7, 100)))["sampling_rate"] == 2 / 7
    assert stage.describe(Run(steps=20))["sampling"] == "none"
    described = account(make_plan({**plan, "relation": "replace_one"}))
    asked = account(make_plan({**plan, "sampling_rate": 0.22, "relation": "replace_one"}))
    assert asked.epsilon < 9.09 < described.epsilon <= 16.64


def test_batches_that_do_not_divide_the_data() -> None:
    """12.87 was printed; if the incomplete batch is dropped a record can be in all ten."""
    assert of(sampling="shuffle", sampling_rate=0.6, steps=10).epsilon == pytest.approx(17.86, abs=0.01)
    kept = of(sampling="shuffle", sampling_rate=0.6, steps=10, last_batch="kept")
    assert kept.epsilon == pytest.approx(gaussian.epsilon(5**-0.5, 1e-5))


def test_records_that_are_drawn_together() -> None:
    """A user's four records, drawn with the client: one coin at four times the distance, not four coins."""
    together = of(unit="user", records_per_user=4, sampled="clients")
    apart = of(unit="user", records_per_user=4, sampled="records")
    assert together.epsilon == pytest.approx(account(make_plan(BASE | {"noise_multiplier": 0.25})).epsilon, rel=1e-9)
    assert apart.epsilon == pytest.approx(8.899, abs=2e-3) and together.epsilon > 100
    # And one record of a client: the client's other records can show the coin.
    assert of(sampled="clients").epsilon == pytest.approx(23.39, abs=0.01)


Kind = Callable[[np.random.Generator], dict[str, Any]]


def _noise(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "noise_multiplier": float(np.exp(rng.uniform(np.log(0.6), np.log(6.0)))),
        "sampling_rate": float(np.exp(rng.uniform(np.log(2e-3), np.log(0.4)))),
        "steps": int(rng.integers(2, 1500)),
        "delta": float(10 ** rng.uniform(-9, -4)),
        "relation": str(rng.choice(["zero_out", "replace_one"])),
    }


def _pick(rng: np.random.Generator, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _shares(rng: np.random.Generator, table: dict[str, Any]) -> dict[str, Any]:
    records = int(rng.integers(100, 3000))
    return table | {"records": records, "sampling_rate": max(1, round(table["sampling_rate"] * records)) / records}


KINDS: dict[str, Kind] = {
    "a client whose records are drawn": lambda rng: (
        _noise(rng)
        | {
            "clip": "update",
            "sampled": "records",
            "view": _pick(rng, "final_model", SERVER),
            "sampling": _pick(rng, "poisson", "fixed", "shuffle"),
        }
    ),
    "laplace": lambda rng: (
        _noise(rng)
        | {
            "mechanism": "laplace",
            "noise_multiplier": float(rng.uniform(2, 40)),
            "clients": int(rng.integers(2, 200)),
            "view": _pick(rng, "secure_aggregation", "final_model"),
            "sampled": _pick(rng, "records", "clients"),
            "steps": int(rng.integers(2, 200)),
        }
    ),
    "the server sees who takes part": lambda rng: (
        _noise(rng)
        | {
            "view": _pick(rng, SERVER, "secure_aggregation"),
            "clients": int(rng.integers(1, 50)),
            "sampled": "clients",
            "clip": _pick(rng, "update", "example"),
        }
    ),
    "shuffled, less than an epoch": lambda rng: (
        _noise(rng)
        | {"sampling": "shuffle", "steps": int(rng.integers(1, 5)), "sampling_rate": float(10 ** rng.uniform(-5, -1))}
    ),
    "shuffled, little noise": lambda rng: (
        _noise(rng)
        | {
            "sampling": "shuffle",
            "noise_multiplier": float(10 ** rng.uniform(-1.6, -0.4)),
            "sampling_rate": 1 / int(rng.integers(1, 30)),
            "steps": int(rng.integers(1, 40)),
        }
    ),
    "fixed batches": lambda rng: _shares(rng, _noise(rng)) | {"sampling": "fixed", "sampled": "records"},
    "small delta": lambda rng: _noise(rng) | {"delta": float(10 ** rng.uniform(-18, -11)), "sampled": "records"},
    "clip per tensor": lambda rng: (
        _noise(rng)
        | {"clip": "tensor", "tensors": int(rng.integers(2, 40)), "sampled": "records", "noise_multiplier": 8.0}
    ),
    "fixed batches of few": lambda rng: (
        _noise(rng)
        | {
            "sampling": "fixed",
            "sampled": "records",
            "records": 7,
            "sampling_rate": int(rng.integers(1, 7)) / 7,
            "steps": int(rng.integers(1, 60)),
            "noise_multiplier": float(rng.uniform(1, 6)),
        }
    ),
    "batches that do not divide": lambda rng: (
        _noise(rng)
        | {
            "sampling": "shuffle",
            "sampling_rate": float(rng.uniform(0.15, 0.9)),
            "steps": int(rng.integers(2, 60)),
            "last_batch": _pick(rng, "kept", "dropped"),
        }
    ),
    "drawn together": lambda rng: (
        _noise(rng)
        | {
            "unit": _pick(rng, "user", "record"),
            "records_per_user": int(rng.integers(2, 7)),
            "sampled": "clients",
            "noise_multiplier": float(rng.uniform(2, 12)),
        }
    ),
}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
@pytest.mark.parametrize("kind", KINDS)
def test_ten_further_plans_of_each_kind(kind: str, seed: int) -> None:
    """No pair of worlds loses more than the printed ε, and the lower bound lies below it. Seeds 5 to 9 were first run when the
    accountant was finished.
    """
    table = KINDS[kind](np.random.default_rng([seed, *kind.encode()]))
    table.setdefault("sampling", "poisson")
    false, share, epsilon = understated(make_plan(table))
    assert not false, f"{table}: {share:.4f} of δ at ε = {epsilon:.5g}"
