"""Why: where noise hides directions, a position of a true sentence may fail every test of its own, and one of a wrong sentence
pass. What decides then is the batch as a whole: the right sentences together explain everything that stands out of the
noise, each of them explains something that no other does, and none leaves a trace. Must not know how sentences are proposed.

For a place in the model with column space U and singular values σ_k in units of the noise, C = Σ_k σ_k² u_k u_kᵀ + m (I − UUᵀ)
is the covariance of the m columns of its gradient. Of rows X of a sentence, given rows A of the others,

    Λ = −(m/2) [log det(X C⁻¹Xᵀ | A) + L log m − log det(XXᵀ | A)],      det(· | A): of the part outside A (Schur complement),

is the log-likelihood ratio of Wilks: large where the update has energy of its own along all L rows. And the directions of
(I − P_A) U diag(σ) that exceed the edge of the noise, √features + √m, are what A leaves unexplained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks
from gradleak.mechanics.subspace.frames import outside
from gradleak.mechanics.subspace.subspace import Subspace
from gradleak.span.reading.observed_layer import ObservedLayer

_DEPENDENT = 1e-5
"""Length below which a unit row has nothing of its own."""
_SWEEPS = 4
"""Passes in which every chosen sentence may be exchanged for a better one, given the others."""
_BUFFERS = 12
"""Activations that a model holds per entry of its stream, roughly."""

Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecidedBatch:
    """Sentences that together explain an update best.

    Attributes:
        unexplained: directions above the noise that they leave, the most of any place; zero: nothing else is in the batch.
    """

    sentences: tuple[Ids, ...]
    unexplained: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """One reader's space, in units in which its noise is white, with the metric C^(−1/2) √m.

    Attributes:
        energies: of the directions that inputs are seen to have; axes that merely belong to the space have none.
        rows: what features are divided by; None where all have the same noise.
    """

    space: Subspace
    basis: Float[Tensor, "features rank"]
    energies: Float[Tensor, "features seen"]
    shrink: Float[Tensor, " rank"]
    outputs: float
    rows: Float[Tensor, " features"] | None

    @staticmethod
    def of(space: Subspace) -> _Place:
        white = space if space.scaled is None else space.scaled
        singular = white.singular / space.noise
        outputs = (space.edge - math.sqrt(space.features)) ** 2
        return _Place(
            space=space,
            basis=white.basis,
            energies=(white.basis * singular)[:, singular.isfinite()],
            shrink=1.0 - (math.sqrt(outputs) / singular).clamp(max=1.0),
            outputs=outputs,
            rows=None if space.scaled is None else space.scaled.rows,
        )

    def units(self, inputs: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Inputs of length one, in these units, in float64."""
        z = inputs.double()
        return torch.nn.functional.normalize(z if self.rows is None else z / self.rows, dim=-1)

    def unexplained(self, frame: Float[Tensor, "features rows"]) -> int:
        """Directions above the edge of the noise outside ``frame``."""
        left = self.energies - frame @ (frame.T @ self.energies)
        return int((torch.linalg.eigvalsh(left.T @ left) > self.space.edge**2).sum())

    def measured(self, rows: Float[Tensor, "rows features"]) -> Float[Tensor, "rows features"]:
        """Rows in the metric in which noise and signals have unit covariance."""
        return rows - ((rows @ self.basis) * self.shrink) @ self.basis.T


@dataclass(slots=True)
class BatchDecision:
    """Chooses among proposed sentences; what the model makes of a sentence is computed once."""

    model: Model
    readers: tuple[ObservedLayer, ...]
    places: tuple[_Place, ...]
    rows: dict[Ids, tuple[Tensor, ...]]
    framed: tuple[tuple[Ids, ...], list[tuple[Tensor, Tensor]]] | None = None

    @staticmethod
    def of(model: Model, readers: Sequence[ObservedLayer]) -> BatchDecision:
        places = tuple(_Place.of(reader.space) for reader in readers)
        return BatchDecision(model=model, readers=tuple(readers), places=places, rows={})

    def choose(self, pool: Sequence[Ids], at_most: int | None) -> DecidedBatch:
        """Adds the sentence with the largest evidence per row, given those before, until nothing is unexplained; then
        exchanges single ones for better ones, and leaves out those that explain nothing of their own.

        Args:
            at_most: number of records in the batch, or None if unknown.
        """
        self._run(pool)
        chosen: list[Ids] = []
        open_pool = list(pool)
        while open_pool and self.left(chosen) and (at_most is None or len(chosen) < at_most):
            scores = self._scores(open_pool, chosen)
            best = max(open_pool, key=scores.__getitem__)
            open_pool.remove(best)
            if self._needed(best, chosen):
                chosen.append(best)
        for _ in range(_SWEEPS):
            before = list(chosen)
            for slot in range(len(chosen)):
                others = chosen[:slot] + chosen[slot + 1 :]
                scores = self._scores([s for s in pool if s not in others], others)
                chosen[slot] = max(scores, key=scores.__getitem__)
            if chosen == before:
                break
        chosen = [s for i, s in enumerate(chosen) if self._needed(s, chosen[:i] + chosen[i + 1 :])]
        return DecidedBatch(sentences=tuple(chosen), unexplained=self.left(chosen))

    def of_all(self, sentences: Sequence[Ids]) -> DecidedBatch | None:
        """These sentences as they are, if each of them explains something that the others do not."""
        self._run(sentences)
        if not all(self._needed(s, [other for other in sentences if other != s]) for s in sentences):
            return None
        return DecidedBatch(sentences=tuple(sentences), unexplained=self.left(sentences))

    def refine(
        self, decided: DecidedBatch, options: Sequence[Int64[Tensor, " tokens"]], closing: int | None, clock: Clock
    ) -> DecidedBatch:
        """Exchanges single tokens for candidates of their position, or tokens of two positions, or moves the end by one, the other
        sentences given, while that adds evidence; sentences with the least evidence first, until nothing is unexplained.

        Args:
            options: candidates per position.
            closing: the token that ends every sentence, or None.
        """
        if not decided.unexplained:
            return decided
        self._run(decided.sentences)
        allowed = [ids.tolist() for ids in options]
        chosen = list(decided.sentences)
        for _ in range(_SWEEPS):
            before = list(chosen)
            chosen.sort(key={s: self._scores([s], [t for t in before if t != s])[s] for s in before}.__getitem__)
            for slot in range(len(chosen)):
                others = chosen[:slot] + chosen[slot + 1 :]
                chosen[slot] = self._refined(chosen[slot], others, allowed, closing, clock)
                if clock.spent() or not self.left(chosen):
                    return DecidedBatch(sentences=tuple(chosen), unexplained=self.left(chosen))
            if set(chosen) == set(before):
                break
        return DecidedBatch(sentences=tuple(chosen), unexplained=self.left(chosen))

    def _refined(
        self, ids: Ids, others: Sequence[Ids], allowed: Sequence[Sequence[int]], closing: int | None, clock: Clock
    ) -> Ids:
        """One sentence with the best change at every position, one after the other, as long as that changes it.

        A token costs what it takes to name it among the candidates of its position, so that no sentence grows on noise.
        """
        for _ in range(_SWEEPS):
            before = ids
            for place in range(len(before)):
                if clock.spent():
                    return ids
                tried = [each for each in _changed(ids, place, allowed, closing) if each not in others]
                scores = self._scores([ids, *tried], others)
                ids = max(scores, key=lambda each: len(each) * scores[each] - _nats(each, allowed))
            if ids == before:
                break
        return ids

    def confidence(
        self, ids: Ids, others: Sequence[Ids], options: Sequence[Int64[Tensor, " tokens"]]
    ) -> Float[Tensor, " length"]:
        """Posterior probability of every token among ``options`` of its position, all else given, from a uniform prior."""
        sure = torch.ones(len(ids), dtype=torch.float64)
        for place, token in enumerate(ids):
            tried = [(*ids[:place], t, *ids[place + 1 :]) for t in options[place].tolist() if t != token]
            scores = list(self._scores([ids, *tried], others).values())
            sure[place] = (len(ids) * torch.tensor(scores, dtype=torch.float64)).softmax(0)[0]
        return sure

    def _scores(self, sentences: Sequence[Ids], others: Sequence[Ids]) -> dict[Ids, float]:
        """Λ per row of each, given the others; what was run of those that are new is kept of the best only, there are many."""
        known = set(self.rows)
        self._run([*sentences, *others])
        scores: dict[Ids, float] = {}
        frames = self._frames(others)
        for length in dict.fromkeys(len(ids) for ids in sentences):
            same = [ids for ids in sentences if len(ids) == length]
            total = self.places[0].basis.new_zeros(len(same))
            for i, (place, (plain, metric)) in enumerate(zip(self.places, frames, strict=True)):
                rows = torch.stack([self.rows[ids][i] for ids in same])
                total += place.outputs * (_log_volume(rows, plain) - _log_volume(place.measured(rows), metric))
            scores |= dict(zip(same, (total / length).tolist(), strict=True))
        kept = known | {*others, max(scores, key=scores.__getitem__)}
        self.rows = {ids: rows for ids, rows in self.rows.items() if ids in kept}
        return {ids: scores[ids] for ids in sentences}

    def _run(self, pool: Sequence[Ids]) -> None:
        """Runs what was not run, sentences of one length at a time."""
        new = [ids for ids in dict.fromkeys(pool) if ids not in self.rows]
        for length in {len(ids) for ids in new}:
            same = [ids for ids in new if len(ids) == length]
            for part in chunks(len(same), length * max(reader.space.features for reader in self.readers) * _BUFFERS):
                seen = self.model.inputs(self.readers, torch.tensor(same[part]))
                unit = [place.units(z) for place, z in zip(self.places, seen, strict=True)]
                self.rows |= {ids: tuple(z[i] for z in unit) for i, ids in enumerate(same[part])}

    def _frames(self, sentences: Sequence[Ids]) -> list[tuple[Tensor, Tensor]]:
        """Per place, what the sentences span there, as it is and measured; kept for the next question about the same ones."""
        if self.framed is None or self.framed[0] != tuple(sentences):
            places = range(len(self.places))
            frames = [(self._frame(sentences, i), self._frame(sentences, i, measured=True)) for i in places]
            self.framed = tuple(sentences), frames
        return self.framed[1]

    def _frame(self, sentences: Sequence[Ids], place: int, *, measured: bool = False) -> Float[Tensor, "features rows"]:
        """An orthonormal basis of all rows of the sentences."""
        self._run(sentences)
        rows = [self.rows[ids][place] for ids in sentences]
        if not rows:
            return self.places[place].basis.new_zeros(self.places[place].space.features, 0)
        every = torch.cat(rows)
        every = self.places[place].measured(every) if measured else every
        left, size, _ = torch.linalg.svd(torch.nn.functional.normalize(every, dim=1).T, full_matrices=False)
        return left[:, size > _DEPENDENT]

    def left(self, sentences: Sequence[Ids]) -> int:
        """Directions above the noise that the sentences do not explain, the most of any place."""
        return max(place.unexplained(self._frame(sentences, i)) for i, place in enumerate(self.places))

    def _needed(self, ids: Ids, others: Sequence[Ids]) -> bool:
        """Whether a sentence explains at some place what the others do not."""
        for i, place in enumerate(self.places):
            without, along = self._frame(others, i), self._frame([*others, ids], i)
            if place.unexplained(along) < place.unexplained(without):
                return True
        return False


def _changed(ids: Ids, place: int, allowed: Sequence[Sequence[int]], closing: int | None) -> list[Ids]:
    """Sentences that differ from this one in the token of ``place``, or hold it later and what stood there now, or end elsewhere."""
    if place >= len(ids):
        return []
    last = len(ids) - 1
    if place == last and closing is not None:
        longer = [(*ids[:last], token, closing) for token in allowed[last]] if len(ids) < len(allowed) else []
        return longer + ([(*ids[: last - 1], closing)] if last > 1 else [])
    found = [(*ids[:place], token, *ids[place + 1 :]) for token in allowed[place]]
    for other in range(place + 1, len(ids) - (closing is not None)):
        one, two = ids[place], ids[other]
        if two in allowed[place] and one in allowed[other]:
            found.append((*ids[:place], two, *ids[place + 1 : other], one, *ids[other + 1 :]))
    if place == last:
        found += [(*ids, token) for token in allowed[last + 1]] if len(ids) < len(allowed) else []
        found += [ids[:last]] if last > 1 else []
    return [each for each in found if each != ids]


def _nats(ids: Ids, allowed: Sequence[Sequence[int]]) -> float:
    return sum(math.log(max(1, len(allowed[place]))) for place in range(len(ids)))


def _log_volume(
    rows: Float[Tensor, "sentences rows features"], frame: Float[Tensor, "features others"]
) -> Float[Tensor, " sentences"]:
    """½ log det of the Gram matrix of what the rows of each sentence have outside the frame."""
    own = outside(rows, frame)
    return torch.linalg.qr(own.mT, mode="r").R.diagonal(dim1=1, dim2=2).abs().clamp(min=_DEPENDENT).log().sum(1)
