"""Where a plan stands among view, unit, what is drawn, sampling, mechanism, clip and relation, and what a row of the table of valid
combinations says about such a place. Must not compute any ε.

The step laws (what one step shows, at noise z and distance d between neighbors, both in units of C):

    full              N(d, z²) against N(0, z²) in every step that uses the unit
    poisson           (1-q)·N(0, z²) + q·N(d, z²) against N(0, z²), the coin hidden
    poisson_exchange  (1-q)·N(0, z²) + q·N(d/2, z²) against (1-q)·N(0, z²) + q·N(-d/2, z²)
    binomial          Σ_m Bin(k, q)(m)·N(m·d, z²) against N(0, z²): k records with a hidden coin each
    fixed             the two pairs of ``accounting.mixtures.fixed_pairs``: another record takes the place
    fixed_exchange    (1-q)·N(0, z²) + q·N(d, z²) against N(0, z²), in both orders
    cut               Poisson batches cut to a limit: who is in may push another out
    known             the draws are known: m participations in a step are one release at distance m·d
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from gradleak.privacy.plan.plan import Plan

Law = Literal["full", "poisson", "poisson_exchange", "binomial", "fixed", "fixed_exchange", "cut", "known"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """Where a plan stands in the table.

    Attributes:
        unit: ``record``, ``user`` (with k records, each clipped by itself) or ``client`` (its whole update is clipped).
        drawn: ``nothing``, ``records`` or ``clients``. sampling: ``cut`` for Poisson batches with a limit.
    """

    mechanism: str
    clip: str
    unit: str
    drawn: str
    sampling: str
    view: str
    relation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination:
    """A row: the values of each axis that it covers, and what holds there.

    Attributes:
        law: the law of one step. theorem: why it bounds the plan. source: where the theorem is from.
        composition: how steps add up. accountants: what computes ε; the least is stated.
    """

    name: str
    mechanism: tuple[str, ...] = ("gaussian",)
    clip: tuple[str, ...]
    unit: tuple[str, ...]
    drawn: tuple[str, ...]
    sampling: tuple[str, ...]
    view: tuple[str, ...]
    relation: tuple[str, ...]
    law: Law
    composition: str
    theorem: str
    source: str
    accountants: tuple[str, ...]

    def differences(self, axes: Axes) -> tuple[str, ...]:
        """Names of the axes on which this row does not cover the plan."""
        return tuple(f.name for f in fields(Axes) if getattr(axes, f.name) not in getattr(self, f.name))


def axes_of(plan: Plan) -> Axes:
    """Where the plan stands. What the plan leaves open is filled in as ``Plan`` says."""
    unit = "client" if plan.clip == "update" else plan.unit
    sampling = "cut" if plan.batch_limit is not None and plan.sampling_rate < 1.0 else plan.sampling
    every = sampling == "none" or (sampling in ("poisson", "fixed") and plan.sampling_rate == 1.0)
    drawn = "nothing" if every else drawn_units(plan)
    return Axes(
        mechanism=plan.mechanism,
        clip=plan.clip,
        unit=unit,
        drawn=drawn,
        sampling="none" if every else sampling,
        view=plan.view,
        relation=plan.relation,
    )


def drawn_units(plan: Plan) -> str:
    """What is drawn: as the plan says, else whole clients where whole updates are clipped or the server sees updates."""
    if plan.sampled is not None:
        return plan.sampled
    return "clients" if plan.clip == "update" or plan.view != "final_model" else "records"
