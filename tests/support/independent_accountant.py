"""A second accountant, written from the definition and from nothing in ``gradleak.privacy``: worlds of explicit records, the law of what
one step releases in each, and δ of the composition by Fourier transforms that are tilted toward the tail.

``worlds`` turns a plan into data sets of scalar gradients, with the unit's records at +1 and the others at the value that gives most
away. δ of such a pair is at most the plan's, so a printed ε at which δ of one of them is above the plan's δ is too small.
``delta_of`` estimates it with its error, ``delta_bracket`` encloses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gradleak.privacy.plan.plan import Plan

Vector = NDArray[np.float64]
Law = tuple[tuple[float, float], ...]
"""Weights and means of a mixture."""


@dataclass(frozen=True)
class Step:
    """What one step shows: a coin that the adversary sees picks a pair of mixtures, noise is added."""

    parts: tuple[tuple[float, Law, Law], ...]
    noise: float
    laplace: bool = False

    def reversed(self) -> Step:
        return Step(tuple((w, b, a) for w, a, b in self.parts), self.noise, self.laplace)

    def losses(self, points: int) -> tuple[Vector, Vector, Vector, float]:
        """Probability under the first world of each cell of the line, its least and largest loss; and what lies outside."""
        masses, lows, highs = [], [], []
        for weight, first, second in self.parts:
            if first == second:
                masses.append(np.array([weight]))
                lows.append(np.zeros(1))
                highs.append(np.zeros(1))
                continue
            means = [m for _, m in (*first, *second)]
            reach = (45 if self.laplace else 12.5) * self.noise
            edges = np.linspace(min(means) - reach, max(means) + reach, points)
            if self.laplace:
                # The loss bends at every mean; a cell then never holds a bend.
                edges = np.unique(np.concatenate([edges, means]))
            cdf = self._distribution(edges, first)
            mass = np.diff(cdf)
            loss = self._log_density(edges, first) - self._log_density(edges, second)
            masses.append(weight * mass)
            lows.append(np.minimum(loss[:-1], loss[1:]))
            highs.append(np.maximum(loss[:-1], loss[1:]))
        mass = np.concatenate(masses)
        return mass, np.concatenate(lows), np.concatenate(highs), max(0.0, 1.0 - float(mass.sum()))

    def _distribution(self, x: Vector, law: Law) -> Vector:
        family = stats.laplace if self.laplace else stats.norm
        # From the nearer side, so that small masses keep their digits.
        return sum((w * family.cdf(x, m, self.noise) for w, m in law), np.zeros_like(x))

    def _log_density(self, x: Vector, law: Law) -> Vector:
        family = stats.laplace if self.laplace else stats.norm
        logs = np.stack([math.log(w) + family.logpdf(x, m, self.noise) for w, m in law])
        return np.logaddexp.reduce(logs, axis=0)


def delta_bracket(
    steps: Sequence[tuple[Step, int]], epsilon: float, *, cells: int = 2**16, points: int = 6001
) -> tuple[float, float]:
    """Lower and upper bound on δ(ε) of the composition: every loss rounded down, and up. Wide after many steps."""
    return _delta(steps, epsilon, "down", cells, points), _delta(steps, epsilon, "up", cells, points)


def delta_of(steps: Sequence[tuple[Step, int]], epsilon: float) -> tuple[float, float]:
    """δ(ε) of the composition, and its error as far as a grid twice as coarse shows it.

    Every loss is split between the two cells around it so that its mean stays: the error is of second order in their width.
    """
    fine = _delta(steps, epsilon, "split", 2**16, 8001)
    return fine, abs(fine - _delta(steps, epsilon, "split", 2**15, 4001))


def _tilt(laws: Sequence[tuple[tuple[Vector, Vector, Vector, float], int]], epsilon: float) -> float:
    def mean(theta: float) -> float:
        total = 0.0
        for (mass, low, high, _), count in laws:
            middle = (low + high) / 2
            with np.errstate(divide="ignore"):
                logs = np.log(mass) + theta * middle
            weight = np.exp(logs - logs.max())
            total += count * float(weight @ middle / weight.sum())
        return total

    low, high = 0.0, 1.0
    if mean(0.0) >= epsilon:
        return 0.0
    while mean(high) < epsilon and high < 4096:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) < epsilon else (low, middle)
    return high


def _delta(steps: Sequence[tuple[Step, int]], epsilon: float, rounding: str, cells: int, points: int) -> float:
    """E_P[(1 - e^{ε-L})₊], L the sum of losses.

    The law of L is a product of transforms, each tilted by e^{θl} with θ such that the tilted mean is ε: the tail at ε then holds most of
    the mass and keeps its relative digits. The window is 12 tilted standard deviations to both sides; what lies outside of it has
    a tilted probability below 1e-30. Mass outside of the line's grid is added to the upper end.
    """
    laws = [(step.losses(points), count) for step, count in steps]
    theta = _tilt(laws, epsilon)
    mean = variance = 0.0
    for (mass, low, high, _), count in laws:
        middle = (low + high) / 2
        weight = _tilted(mass, theta * middle)
        weight /= weight.sum()
        centre = float(weight @ middle)
        mean += count * centre
        variance += count * float(weight @ (middle - centre) ** 2)
    width = max(24 * math.sqrt(variance) / cells, 1e-9)
    transform = np.ones(cells // 2 + 1, dtype=complex)
    log_scale, outside = 0.0, 0.0
    for (mass, low, high, beyond), count in laws:
        pmf, log_norm = _folded(mass, low / width, high / width, theta * width, rounding, cells)
        transform *= np.fft.rfft(pmf) ** count
        log_scale += count * log_norm
        outside += count * beyond
    circle = np.maximum(np.fft.irfft(transform, cells), 0.0)
    # The circle is cut open at the side opposite to the mean.
    places = round(mean / width) - cells // 2 + np.arange(cells)
    losses = width * places
    with np.errstate(divide="ignore"):
        logs = np.log(circle[places % cells]) + log_scale - theta * losses
    above = losses > epsilon
    value = float(np.sum(np.exp(np.minimum(logs[above], 0.0)) * -np.expm1(epsilon - losses[above])))
    return value + outside if rounding == "up" else value


def _tilted(mass: Vector, exponent: Vector) -> Vector:
    with np.errstate(divide="ignore"):
        logs = np.log(mass) + exponent
    return np.exp(logs - logs.max())


def _folded(mass: Vector, low: Vector, high: Vector, tilt: float, rounding: str, cells: int) -> tuple[Vector, float]:
    """The tilted law of one step on the circle of cells, and the logarithm of what it was divided by; losses in cells."""
    if rounding == "split":
        middle = (low + high) / 2
        below = np.floor(middle)
        share = middle - below
        places, weights = np.concatenate([below, below + 1]), np.concatenate([mass * (1 - share), mass * share])
    else:
        places, weights = (np.floor(low) if rounding == "down" else np.ceil(high)), mass
    with np.errstate(divide="ignore"):
        logs = np.log(weights) + tilt * places
    log_norm = float(np.logaddexp.reduce(logs))
    return np.bincount((places % cells).astype(np.int64), np.exp(logs - log_norm), minlength=cells), log_norm


def worlds(plan: Plan) -> list[list[tuple[Step, int]]]:
    """Pairs of data sets that the plan's relation calls neighbors, as the steps that they run through; both orders.

    Written from what the fields of a plan mean. Clients have one value for all their records; what a server sees of who takes part
    is a coin that is seen.
    """
    pairs: list[list[tuple[Step, int]]] = []
    for other in (-1.0, 0.0, 1.0):
        forward = [(_step(plan, z, other), n) for z, n in _used_steps(plan)]
        for pair in (forward, [(step.reversed(), n) for step, n in forward]):
            if pair not in pairs:
                pairs.append(pair)
    return pairs


def _scale(plan: Plan, z: float) -> float:
    """Noise over the unit of one contribution."""
    if plan.clip == "tensor":
        assert plan.tensors is not None
        # All parts move together: one vector of norm √M, or L1 length M.
        z /= plan.tensors if plan.mechanism == "laplace" else plan.tensors**0.5
    if plan.count_noise is not None:
        z = (z**-2 + (2 * plan.count_noise) ** -2) ** -0.5
    if plan.view == "secure_aggregation" and plan.mechanism == "gaussian":
        z *= plan.clients**0.5
    return z


def _used_steps(plan: Plan) -> list[tuple[float, int]]:
    """Noise of the steps, with their number; of shuffled epochs, of those that hold the record when luck is worst."""
    sequence = [p.noise_multiplier for p in plan.phases for _ in range(p.steps)]
    whole_clients = plan.clip == "update" and plan.sampled == "records"
    if plan.view != "final_model" and plan.participations is not None and plan.sampled == "clients":
        used = sorted(sequence)[: plan.participations]
    elif plan.sampling == "shuffle" and not whole_clients:
        fractions = 1 / plan.sampling_rate
        per_epoch = math.ceil(fractions - 1e-9) if plan.last_batch == "kept" else math.floor(fractions + 1e-9)
        used = [min(sequence[i : i + per_epoch]) for i in range(0, len(sequence), per_epoch)]
    else:
        used = sequence
    if plan.mechanism == "tree":
        used = [p.noise_multiplier / math.floor(math.log2(p.steps) + 1) ** 0.5 for p in plan.phases]
    levels = sorted(set(used))
    return [(z, used.count(z)) for z in levels]


def _step(plan: Plan, z: float, other: float) -> Step:
    noise = _scale(plan, z)
    laplace = plan.mechanism == "laplace"
    if plan.clip in ("batch", "microbatch"):
        here, there = 1.0, -1.0
    else:
        here, there = 1.0, (-1.0 if plan.relation == "replace_one" else 0.0)
    client = plan.clip == "update"
    records = plan.records_per_user if plan.unit == "user" and not client else 1
    q = plan.sampling_rate

    def certain(times: float = 1.0) -> Step:
        return Step(((1.0, ((1.0, times * here),), ((1.0, times * there),)),), noise, laplace)

    known = plan.sampling in ("poisson", "fixed") and (
        (plan.view != "final_model" and plan.sampled == "clients")
        or (plan.sampled == "clients" and plan.unit == "record" and not client)
        or plan.clip == "microbatch"
    )
    if (
        plan.sampling in ("none", "shuffle")
        or q == 1.0
        or (client and plan.sampled == "records")
        or (plan.participations is not None and plan.view != "final_model" and plan.sampled == "clients")
    ):
        return certain(records)
    if known:
        same: Law = ((1.0, 0.0),)
        return Step(((q, ((1.0, records * here),), ((1.0, records * there),)), (1 - q, same, same)), noise, laplace)
    if plan.sampling == "with_replacement":
        assert plan.records is not None
        size = max(1, round(q * plan.records))
        chance = (records if plan.sampled != "clients" else 1) / plan.records
        times = records if plan.sampled == "clients" else 1
        law = stats.binom(size, chance)
        return _hidden([(float(law.pmf(m)), m * times) for m in range(size + 1)], here, there, noise, laplace)
    if plan.sampling == "poisson":
        if records > 1 and plan.sampled != "clients":
            law = stats.binom(records, q)
            return _hidden([(float(law.pmf(m)), m) for m in range(records + 1)], here, there, noise, laplace)
        if plan.clip == "batch":
            # Not drawn: the others' clipped sum; drawn: the other end of the ball. An exchange moves from one end to the other.
            rest = there if plan.relation != "replace_one" else other
            lower: Law = ((1.0, rest),) if plan.relation != "replace_one" else ((1 - q, rest), (q, there))
            return Step(((1.0, ((1 - q, rest), (q, here)), lower),), noise, laplace)
        return _hidden([(1 - q, 0), (q, records)], here, there, noise, laplace)
    # A batch of fixed size: where the unit is not drawn, another stands in its place.
    if records > 1 and plan.sampled != "clients":
        assert plan.records is not None
        law = stats.hypergeom(plan.records, records, round(q * plan.records))
        return _hidden([(float(law.pmf(m)), m) for m in range(records + 1)], here, there, noise, laplace)
    return Step(
        ((1.0, ((1 - q, records * other), (q, records * here)), ((1 - q, records * other), (q, records * there))),),
        noise,
        laplace,
    )


def _hidden(times: list[tuple[float, float]], here: float, there: float, noise: float, laplace: bool) -> Step:
    kept = [(w, m) for w, m in times if w > 1e-290]
    first: Law = tuple((w, m * here) for w, m in kept)
    second: Law = tuple((w, m * there) for w, m in kept) if there else ((1.0, 0.0),)
    return Step(((1.0, first, second),), noise, laplace)
