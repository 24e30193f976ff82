"""The accounting half of the acceptance tests of the project's notes (A1 to A11): the notes' number beside ours.

python -m benchmarks.privacy.acceptance

Each has a test of the same name in tests/privacy/accounting/test_accountant.py or test_accounting_tables.py, where the 40 rows of A5 are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from benchmarks.common import run
from gradleak.privacy.accounting import closed_forms, gaussian
from gradleak.privacy.accounting.accountant import account, pld_curve, success
from gradleak.privacy.accounting.events import describe
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.plan.views import resolve
from gradleak.privacy.targets.calibrate import calibrate
from gradleak.privacy.targets.targets import EpsilonAtMost

Row = tuple[str, str, str, float]


def plan(noise_multiplier: float, steps: int = 1, delta: float = 1e-5, **more: object) -> Plan:
    return make_plan({"noise_multiplier": noise_multiplier, "steps": steps, "delta": delta, **more})


def releases() -> Iterator[Row]:
    yield "A1", "ε of one release, z = 1", "4.377178", account(plan(1.0)).epsilon
    yield "A1", "noise for ε = 1", "3.730632", closed_forms.gaussian_multiplier(1.0, 1e-5)
    yield "A2", "δ at ε = 1, μ = 1", ".126936", gaussian.delta(1.0, 1.0)
    yield "A2", "detected at .1 false alarms, three releases with z = √3", ".38914", success(plan(math.sqrt(3), 3), 0.1)


def sampled() -> Iterator[Row]:
    event = describe(resolve(plan(0.5, 3, sampling_rate=0.2)), "pld")
    assert event is not None
    yield "A3", "δ at ε = 1, q = .2, z = .5, 3 steps", ".15594", PLDAccountant().compose(event).get_delta(1.0)
    anchor = account(plan(1.5, 2250, sampling_rate=0.04))
    yield "A4", "q = .04, z = 1.5, 2250 steps: RDP", "7.32911", anchor.rdp or math.nan
    yield "A4", "the same: PLD", "6.7688 (PRV 6.77740)", anchor.epsilon
    docs = plan(3.0, 512, 1e-6, sampling_rate=0.1)
    yield "A6", "z = 3, q = .1, 512 steps, δ = 1e-6", "3.77", account(docs).epsilon
    yield "A6", "noise for ε = 1", "9.66", 3.0 * calibrate(docs, EpsilonAtMost(epsilon=1.0))
    steps = max(n for n in range(150, 160) if account(plan(3.0, n, 1e-6, sampling_rate=0.1)).epsilon <= 2)
    yield "A6", "most steps for ε = 2", "155", steps
    for order, known in (
        (1.5, "6.70580e-4, exact 6.50071e-4"),
        (2.5, "1.08549e-3, exact 1.085418e-3"),
        (5.0, "2.18076e-3"),
    ):
        divergence = 50 * closed_forms.poisson_gaussian_divergence(order, 0.01, 2.5)
        yield "A7", f"Rényi divergence of order {order:g}, z = 2.5, q = .01, 50 steps", known, divergence
    for z, epochs, pld, rdp in ((1.3, 15, ".864", ".954"), (1.1, 60, "2.382", "2.597")):
        found = account(plan(z, epochs * 234, sampling_rate=256 / 60_000))
        yield "A10", f"60,000 records, batches of 256, z = {z}, {epochs} epochs: PLD", pld, found.epsilon
        yield "A10", "the same: RDP", rdp, found.rdp or math.nan


def others() -> Iterator[Row]:
    for z, known in ((1.13, "18.71, below 19.74"), (8.83, "1.773, below 2.04")):
        found = account(plan(z, 1600, 1e-6, mechanism="tree"))
        yield "A8", f"tree over 1600 steps, z = {z}, δ = 1e-6: RDP", known, found.rdp or math.nan
        yield "A8", "the same: exact", "–", found.epsilon
    mixtures = PLDAccountant(value_discretization_interval=1e-3)
    mixtures.compose(dp_event.MixtureOfGaussiansDpEvent(1.0, [0.0, 1.0, 2.0], [0.2, 0.6, 0.2]), 3)
    mixtures.compose(dp_event.MixtureOfGaussiansDpEvent(2.0, [0.0, 2.0, 3.0], [0.33, 0.34, 0.33]), 2)
    yield "A9", "composite of mixtures of Gaussians, δ = 1e-6", "17.193115", mixtures.get_epsilon(1e-6)
    cut = PLDAccountant()
    for records, times in ((4, 3), (3, 2)):
        event = describe(resolve(plan(1.0, 1, 1e-6, sampling_rate=0.5, records=records, batch_limit=2)), "pld")
        assert event is not None
        cut.compose(event, times)
    yield "A9", "composite of cut Poisson batches, δ = 1e-6", "17.904330", cut.get_epsilon(1e-6)
    shuffled = account(plan(0.8, 10_000, sampling="shuffle", sampling_rate=1e-4))
    yield "A11", "shuffled epoch of 10,000 batches, z = .8: not below", "3.836", shuffled.lower or math.nan
    fixed = account(plan(0.8, 10_000, 1e-6, sampling="fixed", sampling_rate=0.001, relation="replace_one"))
    yield "A11", "fixed batches, substitution: certainly not below", "15.25", fixed.lower or math.nan
    up = pld_curve(resolve(plan(0.4, 10_000, 1e-6, sampling_rate=0.001)))
    assert up is not None
    yield "A11", "the same pair, rounded up instead of down", "15.25", up.epsilon(1e-6)


PARTS = {"releases": releases, "sampled": sampled, "others": others}


def print_page(parts: Sequence[str]) -> None:
    print(
        "# Acceptance tests of the accounting\n\nPrinted by `python -m benchmarks.privacy.acceptance`; δ = 1e-5 unless said.\n"
    )
    print("| test | number | notes | here |\n|---|---|---|---|")
    for part in parts:
        for test, what, known, found in PARTS[part]():
            print(f"| {test} | {what} | {known} | {found:.7g} |")


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=()):
        print_page(asked.parts)


if __name__ == "__main__":
    main()
