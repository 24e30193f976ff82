"""In a causal model the input of a layer at position p depends on the tokens up to p only, so sequences grow one
token at a time and every extension is tested at once. Must not know encoders, labels or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.subspace.frames import new_directions
from gradleak.span.decoder.continuations import Continuations, Grid
from gradleak.span.decoder.later_layers import LaterLayers
from gradleak.span.reading.observed_layer import ObservedLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Sequences that no token extends, as few as explain the space.

    Attributes:
        sequences: token ids, the one that explains most dimensions first.
        starts: position of each sequence's first token: 0 but for padding in front of it.
        leaves: number of sequences that passed every test, including those that explain nothing new.
        tested: extensions tested in all; finished: False if the clock ran out.
        crowded: True if prefixes had to be dropped for their number.
        missed: directions of the proof's space that the sequences cannot explain, at least; 0 where none were counted.
        refuted: sequences that passed at the first block and not at the second.
        pool: all that passed and begin without padding, the nearest to the floor first.
    """

    sequences: tuple[Int64[Tensor, " length"], ...]
    starts: tuple[int, ...]
    leaves: int
    tested: int
    finished: bool
    crowded: bool
    missed: int
    refuted: int = 0
    pool: tuple[Int64[Tensor, " length"], ...] = ()


@dataclass(frozen=True, slots=True)
class _Leaf:
    ids: Int64[Tensor, " length"]
    excess: float
    start: int


@dataclass(slots=True)
class _Beam:
    """Prefixes of one length, as candidate numbers, with the sum of their excesses."""

    rows: Int64[Tensor, "prefixes length"]
    excess: Float[Tensor, " prefixes"]


def beam_search(
    grid: Grid,
    continuations: Continuations,
    proof: ObservedLayer,
    model: Model,
    *,
    beam: int,
    at_most: int | None,
    clock: Clock,
    directions: int = 0,
    positional: bool = False,
    later: Callable[[], LaterLayers | None] = lambda: None,
) -> SearchResult:
    """Breadth-first growth from the first position; from later ones too where those leave directions unexplained.

    A sequence explains at most one direction for each of its beginnings, and padding in front of it one more where it carries
    loss: directions beyond that belong to what was not found. Where they are counted nothing passes by chance, and rows that
    hold several documents may give more sequences than there are rows.

    Later layers are asked where more prefixes pass than there are records, before the beam cuts, and of whole sequences at the end; if one
    of these fails there, growth is repeated with every prefix tested at once.

    Args:
        grid: candidates per position.
        continuations: the test of an extension.
        proof: a place behind the first attention, where sequences that pass every test are told from echoes.
        beam: most prefixes kept of one length.
        at_most: number of sequences wanted, or None for all that explain something.
        directions: of the space behind the first attention; 0 where some may belong to no token.
        positional: whether a sequence that begins at a later position has other inputs.
        later: the layers behind ``proof``, made when they are first asked for; None if there are none.
    """
    growth = _Growth(grid=grid, continuations=continuations, beam=beam, clock=clock, later=later, few=at_most or 0)
    walk = growth.from_start(0)
    layers = later() if walk.leaves and walk.finished else None
    if layers is not None and directions:
        directions = layers.layers[0].space.inputs
    refuted = walk.refuted_by(later)
    if refuted and not clock.spent():
        again = replace(growth, few=-1).from_start(0)
        walk = again if again.finished else walk
        refuted = walk.refuted_by(later)
    walk = replace(walk, leaves=[leaf for place, leaf in enumerate(walk.leaves) if place not in refuted])
    if positional and directions > _explained(walk.leaves):
        for start in range(1, grid.length):
            if not walk.finished:
                break
            walk = walk.joined(growth.from_start(start))
    # A crowd of prefixes says that wrong ones pass too.
    chosen = _select(
        walk.leaves, layers.layers[0] if layers else proof, model, at_most, 0 if walk.crowded else directions
    )
    return SearchResult(
        sequences=tuple(leaf.ids for leaf in chosen),
        starts=tuple(leaf.start for leaf in chosen),
        leaves=len(walk.leaves),
        tested=walk.tested,
        finished=walk.finished,
        crowded=walk.crowded,
        missed=max(0, directions - _explained(chosen)) if walk.finished and chosen else 0,
        refuted=len(refuted),
        pool=tuple(leaf.ids for leaf in sorted(walk.leaves, key=lambda leaf: leaf.excess) if not leaf.start),
    )


def _explained(leaves: list[_Leaf]) -> int:
    """The most directions that these sequences can explain."""
    rows = [(leaf.start, *leaf.ids.tolist()) for leaf in leaves]
    beginnings = {row[:end] for row in rows for end in range(2, len(row) + 1)}
    return len(beginnings) + sum(leaf.start > 0 for leaf in leaves)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Walk:
    """What growth from one position (or several) came to."""

    leaves: list[_Leaf]
    tested: int
    finished: bool
    crowded: bool

    def joined(self, other: _Walk) -> _Walk:
        return _Walk(
            leaves=self.leaves + other.leaves,
            tested=self.tested + other.tested,
            finished=self.finished and other.finished,
            crowded=self.crowded or other.crowded,
        )

    def refuted_by(self, later: Callable[[], LaterLayers | None]) -> set[int]:
        """Leaves that are no members at some position of the later layers."""
        layers = later() if self.leaves and self.finished else None
        if layers is None:
            return set()
        groups: dict[tuple[int, int], list[int]] = {}
        for place, leaf in enumerate(self.leaves):
            groups.setdefault((leaf.start, len(leaf.ids)), []).append(place)
        refuted: set[int] = set()
        for (start, _), places in groups.items():
            rows = torch.stack([self.leaves[place].ids for place in places])
            passed = layers.since(start).passed_whole(rows).tolist()
            refuted |= {place for place, good in zip(places, passed, strict=True) if not good}
        return refuted


@dataclass(frozen=True, kw_only=True, slots=True)
class _Growth:
    """Growth from a position.

    Attributes:
        few: number of prefixes of one length up to which later layers are not asked; −1 to ask them always.
    """

    grid: Grid
    continuations: Continuations
    beam: int
    clock: Clock
    later: Callable[[], LaterLayers | None]
    few: int

    def from_start(self, start: int) -> _Walk:
        grid, continuations = self.grid, self.continuations
        if start:
            grid, continuations = grid.since(start), continuations.since(start)
        leaves: list[_Leaf] = []
        root = grid.tokens.new_empty(1, 0)
        front = _Beam(root, root.new_zeros(1, dtype=torch.float64))
        tested, crowded, finished = 0, False, True
        for p in range(grid.length):
            finished = not self.clock.spent()
            if not finished or not len(front.rows):
                break
            self.clock.progress(p / grid.length, f"position {p + 1} of {grid.length}, {len(front.rows)} prefixes")
            if not grid.counts[p]:
                break
            verdicts = continuations.test(front.rows, tests_left=grid.length - p)
            tested += verdicts.passed.numel()
            parents, children = verdicts.passed.nonzero(as_tuple=True)
            rows = torch.cat((front.rows[parents], children.unsqueeze(1)), dim=1)
            good = self._members(rows, grid, start)
            parents, children, rows = parents[good], children[good], rows[good]
            ended = torch.ones(len(front.rows), dtype=torch.bool, device=rows.device).index_fill(0, parents, False)
            leaves += _leaves(grid, front, ended, start)
            excess = front.excess[parents] + verdicts.excess[parents, children]
            crowded |= len(parents) > self.beam
            keep = excess.argsort()[: self.beam]
            front = _Beam(rows[keep], excess[keep])
        leaves += _leaves(grid, front, front.rows.new_ones(len(front.rows), dtype=torch.bool), start)
        return _Walk(leaves=leaves, tested=tested, finished=finished, crowded=crowded)

    def _members(self, rows: Int64[Tensor, "prefixes length"], grid: Grid, start: int) -> Bool[Tensor, " prefixes"]:
        """Those that later layers let pass; all while they are few. One token repeated counts for nothing: rotations never reject it."""
        every = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        if not len(rows):
            return every
        ids = grid.ids(rows)
        if int((ids != ids[:, :1]).any(dim=1).sum()) <= self.few:
            return every
        layers = self.later()
        if layers is None:
            return every
        return layers.since(start).passed(rows)


def _leaves(grid: Grid, front: _Beam, which: Tensor, start: int) -> list[_Leaf]:
    length = front.rows.shape[1]
    if not length:
        return []
    chosen = which.nonzero().flatten()
    means = (front.excess[chosen] / length).tolist()
    return [_Leaf(ids, excess, start) for ids, excess in zip(grid.ids(front.rows[chosen]), means, strict=True)]


def _select(
    leaves: list[_Leaf], proof: ObservedLayer, model: Model, at_most: int | None, directions: int
) -> list[_Leaf]:
    """The sequences that explain most: all of them where there are as many as records, else a greedy choice.

    Passing every test is not enough: where positions are rotations the first token repeated for ever passes too, for
    attention over equal values returns that value. Such a sequence explains no dimension that the true one does not, or leaves
    the proof's space. More than asked for are taken from those that stay inside while ``directions`` are left to explain.
    """
    if at_most is not None and len(leaves) == at_most:
        return sorted(leaves, key=lambda leaf: leaf.excess)
    rows = [_normed(proof, model, leaf) for leaf in leaves]
    chosen: list[_Leaf] = []
    explained = proof.space.basis.new_zeros(0, proof.space.features)
    left = set(range(len(leaves)))
    inside = {i for i in left if float(proof.space.residual(rows[i]).max()) < _tolerance(proof, rows[i])}
    if directions and at_most is None:
        left = inside
    while left:
        if at_most is not None and len(chosen) >= at_most:
            left &= inside if directions > _explained(chosen) else set()
            if not left:
                break
        gains = {i: new_directions(rows[i], explained, tolerance=_tolerance(proof, rows[i])) for i in left}
        best = max(left, key=lambda i: (len(gains[i]), -leaves[i].excess, -i))
        if not len(gains[best]):
            break
        chosen.append(leaves[best])
        explained = torch.cat((explained, gains[best]))
        left.remove(best)
    return chosen


def _normed(reader: ObservedLayer, model: Model, leaf: _Leaf) -> Float[Tensor, "seq features"]:
    (z,) = model.inputs_behind(leaf.start, (reader,), leaf.ids.unsqueeze(0))
    return torch.nn.functional.normalize(z[0].double(), dim=-1)


def _tolerance(reader: ObservedLayer, rows: Tensor) -> float:
    """Half way, in logarithm, between what noise leaves of an explained row and a whole row."""
    return float(reader.space.expected(rows).median().clamp(max=1.0).sqrt())
