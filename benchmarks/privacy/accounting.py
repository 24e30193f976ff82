"""Privacy accounting beside the numbers of other tools and of the project's notes, and the lint on public defaults.

python -m benchmarks.privacy.accounting
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import run
from gradleak.privacy.accounting import closed_forms
from gradleak.privacy.accounting.accountant import account, success
from gradleak.privacy.lint import lint
from gradleak.privacy.plan.file import make_plan, read_plan
from gradleak.privacy.plan.plan import Phase, Plan
from gradleak.privacy.targets.noise_for_targets import compare

PLANS = Path(__file__).parent / "plans"


def plan(noise_multiplier: float, steps: int = 1, **kwargs: Any) -> Plan:
    if "sampling_rate" in kwargs:
        kwargs.setdefault("sampling", "poisson")
    return Plan(phases=(Phase(noise_multiplier=noise_multiplier, steps=steps),), **kwargs)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print(f"\n## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("| " + " | ".join(_cell(value) for value in row) + " |")


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return ("no guarantee" if math.isinf(value) else f"{value:.4g}") if isinstance(value, float) else str(value)


def anchors() -> None:
    known = (
        (1.5, 0.04, 2250, 1e-5, "PRV 6.7774, RDP 7.3291 (Opacus tests)"),
        (0.8, 0.05, 1000, 1e-6, "PRV 19.526 (Opacus tests)"),
        (1.0, 0.01, 1000, 1e-5, "PRV 1.838 (Opacus), 1.828 (dp-accounting)"),
        (0.5, 0.05, 2000, 1e-6, "PRV 100.7 (Opacus)"),
        (3.0, 0.1, 512, 1e-6, "3.77 (jax_privacy docs)"),
        (6.0, 0.01, 10_000, 1e-5, ".601 / .659 (notes, Fed-CDP)"),
    )
    rows = []
    for z, q, steps, delta, elsewhere in known:
        found = account(plan(z, steps, sampling_rate=q, delta=delta))
        limit = closed_forms.central_limit_epsilon([(z, steps)], q, delta)
        rows.append((z, q, steps, delta, found.epsilon, found.rdp, limit, elsewhere))
    columns = ("z", "q", "steps", "δ", "ε, PLD", "ε, RDP", "ε, central limit (no bound)", "elsewhere")
    table("Poisson-sampled Gaussian, add-or-remove", columns, rows)


def views() -> None:
    shared: dict[str, Any] = {"sampling_rate": 0.01, "sampled": "clients", "clip": "update"}
    rows = [
        ("final model", account(plan(1.0, 1000, **shared)).epsilon, 1.83),
        (
            "server sees each update, 10 participations",
            account(plan(1.0, 1000, view="server_sees_each_update", **shared)).epsilon,
            17.86,
        ),
        (
            "the same, one participation",
            account(plan(1.0, 1000, view="server_sees_each_update", participations=1, **shared)).epsilon,
            4.38,
        ),
        (
            "secure aggregation over 100 honest clients, z = 0.1 at each, one participation",
            account(plan(0.1, 1000, view="secure_aggregation", clients=100, participations=1, **shared)).epsilon,
            None,
        ),
        ("final model, replace-one", account(plan(1.0, 1000, relation="replace_one", **shared)).epsilon, 2.843),
        ("nothing is clipped", account(plan(1.0, 1000, sampling_rate=0.01, clip="none")).epsilon, None),
    ]
    table("One plan, several views: z = 1, q = 0.01, 1000 steps, δ = 1e-5", ("view", "ε", "notes"), rows)
    users = ((k, plan(1.0, 1000, sampling_rate=0.01, unit="user", records_per_user=k)) for k in (1, 4, 16))
    rows = [(k, account(each).epsilon, known) for (k, each), known in zip(users, (1.83, 8.90, 52.7), strict=True)]
    table("The same for a user with k records", ("k", "ε", "notes"), rows)


def batches() -> None:
    rows = []
    for z in (0.4, 0.5, 0.8, 1.0):
        for count in (100, 1000, 10_000):
            found = account(plan(z, count, sampling="shuffle", sampling_rate=1 / count))
            rows.append((z, count, found.poisson, found.lower, found.epsilon))
    columns = ("z", "batches", "if they were Poisson", "certainly not below", "guaranteed")
    table("One shuffled epoch, δ = 1e-5, zero-out", columns, rows)
    rows = []
    for z, q, steps, delta in ((0.8, 1e-3, 10_000, 1e-6), (1.0, 1e-2, 1000, 1e-5)):
        found = account(plan(z, steps, sampling="fixed", sampling_rate=q, relation="replace_one", delta=delta))
        rows.append((z, q, steps, delta, found.poisson, found.lower, found.epsilon, found.method))
    columns = ("z", "q", "steps", "δ", "Poisson, add-or-remove", "certainly not below", "guaranteed", "by")
    table("Fresh batches of fixed size, replace-one", columns, rows)


def reconstruction() -> None:
    rows = [
        (z, steps, q, *(success(plan(z, steps, sampling_rate=q), kappa) for kappa in (1e-3, 0.01, 0.1, 0.5)))
        for z, steps, q in ((1.0, 50, 0.1), (1.5, 2250, 0.04), (1.0, 1000, 0.01))
    ]
    columns = ("z", "steps", "q", "κ = .001", "κ = .01", "κ = .1", "κ = .5")
    table("No attacker succeeds more often, when guessing succeeds with κ", columns, rows)


def frontier() -> None:
    columns = ("goal", "noise multiplier", "ε then (δ = 1e-5)", "noise variance against ε = 8")
    for title, of in (
        ("one release", plan(1.0)),
        ("1000 steps, Poisson q = 0.01", plan(1.0, 1000, sampling_rate=0.01)),
    ):
        rows = [(p.goal, p.noise_multiplier, p.epsilon, p.relative_variance) for p in compare(of)]
        table(f"Goals on one axis: {title}", columns, rows)


def frameworks() -> None:
    for file in sorted(PLANS.glob("*.toml")):
        name, of = file.stem, make_plan(read_plan(file))
        found = account(of)
        print(f"\n## Lint of `benchmarks/privacy/plans/{name}.toml`\n")
        print(f"Guaranteed ε = {_cell(found.epsilon)} at δ = {found.delta:g}; Poisson {_cell(found.poisson)}; ", end="")
        print(f"certainly not below {_cell(found.lower)}.\n")
        findings = lint(of, found)
        print("\n".join(f"- {f.severity} `{f.code}`: {f.message}" for f in findings) or "- nothing found")


def print_page() -> None:
    start = time.process_time()
    print(
        "# Accounting\n\nPrinted by `python -m benchmarks.privacy.accounting`. Notes: the numbers that the formulas were checked with."
    )
    for part in (anchors, views, batches, reconstruction, frontier, frameworks):
        part()
    print(f"\n{time.process_time() - start:.0f} CPU seconds.")


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=()):
        print_page()


if __name__ == "__main__":
    main()
