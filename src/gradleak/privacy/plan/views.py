"""Turns a plan into what the adversary of its view sees of one protected unit, by the row of ``combinations`` that covers it.
Must not compute any ε.

    final_model               the model, at any or all steps; who was sampled stays secret
    server_sees_each_update   each client's update: sampling of *clients* is no secret, so each participation is a full release;
                              sampling of records inside a client still is
    secure_aggregation        the sum over M honest clients: Gaussian noise of the sum has √M times the multiplier of one client
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gradleak.privacy.plan.axes import Axes, Combination, Law
from gradleak.privacy.plan.combinations import find
from gradleak.privacy.plan.plan import Mechanism, Phase, Plan, Relation

_ROUNDING = 1e-9
"""A rate of 1/3 has 3 batches in an epoch although 1 / (1 / 3) may round to a little less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What the adversary sees of one protected unit, in the fewest numbers that decide ε.

    Attributes:
        phases: noise multipliers in units of C, with the steps that the law holds for.
        law: of one step; see ``combinations``.
        distance: d, how far one participation moves the sum between neighbors, in units of C.
        rate: q, of the law's coin; for the laws ``binomial`` and ``known`` the probability of each of ``draws`` draws.
        draws: how often the unit can be in one step; of ``population`` without replacement where that is given.
        relation: the neighboring relation that the numbers are for.
        batch_limit, records: where Poisson batches of so many records are cut to a limit; both None otherwise.
        epoch: steps of one epoch, for shuffled batches.
        notes: what had to be assumed. row: the combination that covers the plan.
    """

    mechanism: Mechanism
    phases: tuple[Phase, ...]
    law: Law
    distance: float = 1.0
    rate: float = 1.0
    draws: int = 1
    population: int | None = None
    relation: Relation = "add_or_remove"
    batch_limit: int | None = None
    records: int | None = None
    epoch: int | None = None
    notes: tuple[str, ...] = ()
    row: Combination | None = None

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def signal(self) -> float:
        """Mean square of the unit's own contribution to the noise-free release, over the noise's variance, summed over the steps.

        The contribution of one participation has norm at most ``distance``, or half of that where neighbors exchange it.
        """
        reach = self.distance / (2.0 if self.relation == "replace_one" else 1.0)
        mean = self.draws * self.rate
        square = mean * (1.0 - self.rate) + mean * mean
        return sum(p.steps * square * (reach / p.noise_multiplier) ** 2 for p in self.phases)


def refusal(plan: Plan) -> str | None:
    """Why this plan has no ε at all, or None if it has one."""
    return next((sentence for holds, sentence in _refusals(plan) if holds), None)


def resolve(plan: Plan) -> Release:
    """The releases that the plan's view leaves. Call ``refusal`` first: the numbers of a refused plan mean nothing.

    Raises:
        UsageError: if no row of the table covers the plan.
    """
    row, axes = find(plan)
    notes = list(_notes(plan, axes))
    phases = plan.phases
    epoch: int | None = None
    if axes.sampling == "shuffle" and not _always_there(axes):
        epoch, phases = max(
            ((batches, _one_in_each(phases, batches)) for batches in batches_per_epoch(plan)),
            key=lambda pair: _cost(pair[1]),
        )
    if plan.mechanism == "tree":
        phases = tuple(Phase(noise_multiplier=p.noise_multiplier / math.sqrt(nodes(p.steps))) for p in phases)
    law = row.law
    if plan.participations is not None and _participations_count(plan, axes):
        phases, law = _least_noisy(plan.phases, plan.participations), "full"
    draws, rate, population = _draws(plan, axes, law)
    return Release(
        mechanism="laplace" if plan.mechanism == "laplace" else "gaussian",
        phases=tuple(Phase(noise_multiplier=_multiplier(plan, p.noise_multiplier), steps=p.steps) for p in phases),
        law=law,
        distance=_distance(plan, axes),
        rate=rate,
        draws=draws,
        population=population,
        relation=axes.relation,  # pyright: ignore[reportArgumentType]
        batch_limit=plan.batch_limit if law == "cut" else None,
        records=plan.records if law == "cut" else None,
        epoch=epoch,
        notes=tuple(notes),
        row=row,
    )


def batches_per_epoch(plan: Plan) -> tuple[int, ...]:
    """After how many steps a shuffled record can come again; both numbers where it is not said what becomes of the last batch.

    A record of an epoch's dropped last batch can be in any batch of the next epoch, so an epoch then has ⌊1/q⌋ steps, else
    ⌈1/q⌉.
    """
    whole = 1.0 / plan.sampling_rate
    kept, dropped = math.ceil(whole * (1 - _ROUNDING)), max(1, math.floor(whole * (1 + _ROUNDING)))
    return {"kept": (kept,), "dropped": (dropped,), None: (dropped, kept)}[plan.last_batch]


def nodes(leaves: int) -> int:
    """The most nodes of a binary tree over so many leaves that one leaf is part of: ⌊log₂ leaves⌋ + 1.

    A node is released once all its leaves are in, so the deepest leaf lies in one node of every size 1, 2, 4, … up to the
    largest power of two that is not above ``leaves``. A unit in one leaf moves each of them by at most C: √nodes·C in all.

    Source: Kairouz et al., arXiv 2103.00039, for the mechanism; the count is derived here.
    """
    return leaves.bit_length()


def _always_there(axes: Axes) -> bool:
    """True for a client whose records are drawn: it is in every step."""
    return axes.unit == "client" and axes.drawn == "records"


def _participations_count(plan: Plan, axes: Axes) -> bool:
    """True where a known number of participations replaces the steps: the server sees them, and a client takes part or not."""
    clients = axes.drawn == "clients" or (axes.drawn == "nothing" and plan.sampled != "records")
    return plan.view != "final_model" and clients


def _distance(plan: Plan, axes: Axes) -> float:
    if plan.clip in ("microbatch", "batch"):
        # From anywhere in the ball of radius C to anywhere, whatever the neighbors.
        return 2.0
    together = axes.unit == "user" and (
        axes.drawn in ("nothing", "clients") or axes.sampling == "shuffle" or plan.mechanism == "tree"
    )
    records = plan.records_per_user if together else 1
    return records * (2.0 if axes.relation == "replace_one" else 1.0)


def _draws(plan: Plan, axes: Axes, law: Law) -> tuple[int, float, int | None]:
    """How often the unit can be in a step, the probability of each time, and the population if drawn without replacement."""
    if law == "full":
        return 1, 1.0, None
    q, k = plan.sampling_rate, plan.records_per_user if axes.unit == "user" else 1
    if axes.sampling == "with_replacement":
        assert plan.records is not None
        size = max(1, round(q * plan.records))
        return size, min(1.0, (k if axes.drawn == "records" else 1) / plan.records), None
    if axes.unit == "user" and axes.drawn == "records":
        if axes.sampling != "fixed":
            return k, q, None
        # Without the number of records, the worst way to draw k of them: all in the same batches.
        return (k, q, plan.records) if plan.records is not None and plan.records >= k else (k, 1.0, None)
    return 1, q, None


def _cost(phases: tuple[Phase, ...]) -> float:
    return sum(p.steps / max(p.noise_multiplier, 1e-300) ** 2 for p in phases)


def _multiplier(plan: Plan, noise_multiplier: float) -> float:
    """Noise of the whole release in units of what one participation moves.

    Adaptive clipping releases Σ(b - ½) with noise s beside the sum, b = 1 for a gradient below C: one record moves it by ½ where it
    moves the sum by C. Both together are one Gaussian release, 1/z² + 1/(2s)².
    """
    z = noise_multiplier
    if plan.clip == "tensor" and plan.tensors is not None:
        z /= plan.tensors if plan.mechanism == "laplace" else math.sqrt(plan.tensors)
    if plan.count_noise is not None and z > 0:
        z = 1.0 / math.hypot(1.0 / z, 0.5 / plan.count_noise)
    return z * math.sqrt(plan.clients) if plan.view == "secure_aggregation" and plan.mechanism == "gaussian" else z


def _notes(plan: Plan, axes: Axes) -> Iterator[str]:
    if axes.drawn != "nothing" and plan.sampled is None:
        yield (
            f"what is sampled was not said and is taken for {axes.drawn}; say sampled=records if records are drawn in secret, "
            "sampled=clients if whole clients are drawn"
        )
    if _always_there(axes):
        yield "the unit is a client and its records are drawn: the client is in every step, so this sampling hides nothing of it"
    if plan.participations is not None and _participations_count(plan, axes):
        yield f"the server knows who takes part: {plan.participations} full releases, those with the least noise"
    elif plan.view != "final_model" and axes.drawn == "clients" and axes.sampling in ("poisson", "fixed"):
        yield (
            "the server knows who takes part, so sampling of clients hides nothing: ε is for the mean of δ over the number of "
            "participations; give participations for a client whose number is known"
        )
    yield from _noise_notes(plan)
    if plan.relation != axes.relation:
        yield _relation_note(plan, axes)
    whole = round(1 / plan.sampling_rate) * plan.sampling_rate
    if axes.sampling == "shuffle" and plan.last_batch is None and abs(whole - 1) > _ROUNDING:
        yield "batches do not divide the data; an incomplete last batch is taken to be dropped, the worse case (last_batch=kept if not)"


def _noise_notes(plan: Plan) -> Iterator[str]:
    if plan.view == "secure_aggregation" and plan.clients > 1:
        if plan.mechanism == "gaussian":
            yield f"{plan.clients} honest clients add independent noise and none of them colludes with the server"
        else:
            yield "a sum of Laplace noise is not Laplace noise; only the noise of one client is counted"
    if plan.count_noise is not None:
        yield f"the clipping bound follows a private count with noise {plan.count_noise:g}, released beside the sum: 1/z² + 1/(2·{plan.count_noise:g})²"
    if plan.clip == "tensor" and (plan.tensors or 1) > 1:
        yield f"{plan.tensors} parts clipped to C each have sensitivity {_parts(plan)} together"
    if plan.mechanism == "tree":
        yield "the unit takes part at most once in each tree; a tree counts as one Gaussian release of all its nodes"


def _relation_note(plan: Plan, axes: Axes) -> str:
    if plan.view != "final_model":
        return "the receiver sees who takes part, so presence is no secret; accounted for a contribution set to zero"
    return "removing a record would move others to other steps; accounted for a record set to zero"


def _parts(plan: Plan) -> str:
    return f"{plan.tensors}·C" if plan.mechanism == "laplace" else f"√{plan.tensors}·C"


def _one_in_each(phases: tuple[Phase, ...], epoch: int) -> tuple[Phase, ...]:
    """The least noisy step of every epoch, a started one counted."""
    levels = np.repeat([p.noise_multiplier for p in phases], [p.steps for p in phases])
    padded = np.pad(levels, (0, -len(levels) % epoch), constant_values=math.inf)
    values, counts = np.unique(padded.reshape(-1, epoch).min(1), return_counts=True)
    return tuple(Phase(noise_multiplier=float(z), steps=int(n)) for z, n in zip(values, counts, strict=True))


def _least_noisy(phases: tuple[Phase, ...], steps: int) -> tuple[Phase, ...]:
    """The worst case of ``steps`` participations: those with the least noise."""
    kept: list[Phase] = []
    for phase in sorted(phases, key=lambda p: p.noise_multiplier):
        taken = min(steps, phase.steps)
        if taken:
            kept.append(replace(phase, steps=taken))
        steps -= taken
    return tuple(kept)


def _refusals(plan: Plan) -> tuple[tuple[bool, str], ...]:
    return (
        (
            plan.clip == "none",
            "nothing is clipped, so one record can move the update by any amount and no noise is enough. Clip each example (or the "
            "whole update) to a fixed norm.",
        ),
        (
            plan.clip == "data",
            "the clipping bound follows the private data: the noise scale itself tells about them, and no sensitivity is fixed. "
            "Fix C in advance, or find it by a private quantile (count_noise).",
        ),
        (
            plan.normalization == "batch" and plan.clip in ("example", "tensor", "microbatch"),
            "layers use statistics of the batch (BatchNorm), so one record changes the gradient of every other and a clip of each "
            "bounds nothing. Use GroupNorm or LayerNorm.",
        ),
        (
            bool(plan.unnoised),
            f"{', '.join(plan.unnoised)} is released without noise. Noise must reach every shared parameter, zero rows included.",
        ),
        (
            plan.noise_seed == "reused" and plan.steps > 1,
            "the same noise is drawn in several steps, so their difference has none. Draw fresh noise in each step.",
        ),
        (
            plan.divisor == "actual" and plan.sampling == "poisson",
            "the noisy sum is divided by the actual batch size, which is random and private: the noise scale tells it. Divide by the "
            "expected batch size.",
        ),
        (
            plan.view != "final_model" and plan.noise_by == "server",
            "the server adds the noise, and this adversary is the server: it sees what came before. Let each client add noise.",
        ),
        (plan.least_noise == 0, "some step adds no noise, and what is seen once without noise stays seen."),
    )
