"""Why: in a causal model the input of a layer at position p depends on the tokens up to p only, so sequences grow one
token at a time and every extension is tested at once. Must not know encoders, labels or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.probe import chunks
from gradleak.mechanics.span_readers import Candidates, Model, Reader, calibrate, judge_rows

_NULL_ROWS = 192
_ACTIVATIONS = 12
"""Rough number of width-sized activations that a block holds per token; sizes the chunks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grown:
    """Sequences that no token extends, as few as explain the space.

    Attributes:
        sequences: token ids, the one that explains most dimensions first.
        leaves: number of sequences that passed every test, including those that explain nothing new.
        tested: extensions tested in all; finished: False if the clock ran out.
        crowded: True if prefixes had to be dropped for their number.
    """

    sequences: tuple[Int64[Tensor, " length"], ...]
    leaves: int
    tested: int
    finished: bool
    crowded: bool


@dataclass(frozen=True, slots=True)
class _Leaf:
    ids: Int64[Tensor, " length"]
    excess: float


@dataclass(slots=True)
class _Front:
    """Prefixes of one length with the sum of their excesses."""

    rows: Int64[Tensor, "prefixes seq"]
    excess: Float[Tensor, " prefixes"]


def grow(
    candidates: Candidates,
    readers: Sequence[Reader],
    model: Model,
    *,
    beam: int,
    at_most: int | None,
    rng: torch.Generator,
    clock: Clock,
) -> Grown:
    """Breadth-first growth from the first position.

    Args:
        candidates: per position; an empty first position opens it to the whole vocabulary (queries alone never show it).
        readers: places behind the first attention; the last position of an extension is tested there.
        beam: most prefixes kept of one length.
        at_most: number of sequences wanted, or None for all that explain something.
    """
    positions = candidates.length()
    leaves: list[_Leaf] = []
    front = _Front(torch.empty(1, 0, dtype=torch.int64), torch.zeros(1, dtype=torch.float64))
    tested, crowded, finished = 0, False, True
    for p in range(positions):
        finished = not clock.spent()
        if not finished or not len(front.rows):
            break
        clock.progress(p / positions, f"position {p + 1} of {positions}, {len(front.rows)} prefixes")
        tokens = candidates.tokens[p]
        if p == 0 and not tokens.numel():
            tokens = torch.arange(model.vocab_size)
        child, parents = _extend(front, tokens, readers, model, tests_left=positions - p, rng=rng)
        tested += len(front.rows) * tokens.numel()
        barren = torch.ones(len(front.rows), dtype=torch.bool)
        barren[parents] = False
        leaves += _leaves(front, barren)
        crowded |= len(child.rows) > beam
        keep = child.excess.argsort()[:beam]
        front = _Front(child.rows[keep], child.excess[keep])
    leaves += _leaves(front, torch.ones(len(front.rows), dtype=torch.bool))
    return Grown(
        sequences=tuple(_select(leaves, readers, model, at_most)),
        leaves=len(leaves),
        tested=tested,
        finished=finished,
        crowded=crowded,
    )


def _leaves(front: _Front, which: Tensor) -> list[_Leaf]:
    length = front.rows.shape[1]
    if not length:
        return []
    return [_Leaf(front.rows[i], float(front.excess[i]) / length) for i in which.nonzero().flatten()]


def _extend(
    front: _Front, tokens: Tensor, readers: Sequence[Reader], model: Model, *, tests_left: int, rng: torch.Generator
) -> tuple[_Front, Int64[Tensor, " children"]]:
    """Accepted extensions of every prefix by every token, and the index of each one's parent."""
    prefixes, length = front.rows.shape
    if not tokens.numel() or not prefixes:
        empty = torch.empty(0, length + 1, dtype=torch.int64)
        return _Front(empty, torch.empty(0, dtype=torch.float64)), torch.empty(0, dtype=torch.int64)
    parents = torch.arange(prefixes).repeat_interleave(tokens.numel())
    rows = torch.cat((front.rows[parents], tokens.repeat(prefixes).unsqueeze(1)), dim=1)
    null = _last_inputs(readers, model, _wrong_rows(front.rows, tokens, model.vocab_size, rng))
    verdict = judge_rows(
        readers, _last_inputs(readers, model, rows), calibrate(readers, null), tests=len(rows) * tests_left
    )
    keep = verdict.passed.nonzero().flatten()
    excess = front.excess[parents[keep]] + verdict.excess[keep]
    return _Front(rows[keep], excess), parents[keep]


def _wrong_rows(prefixes: Tensor, tokens: Tensor, vocab_size: int, rng: torch.Generator) -> Tensor:
    """Prefixes continued by random tokens, candidates excluded where the vocabulary has others: almost all wrong."""
    others = torch.ones(vocab_size, dtype=torch.bool)
    if tokens.numel() < vocab_size:
        others[tokens] = False
    pool = others.nonzero().flatten()
    ends = pool[torch.randint(len(pool), (_NULL_ROWS,), generator=rng)]
    starts = prefixes[torch.randint(len(prefixes), (_NULL_ROWS,), generator=rng)]
    return torch.cat((starts, ends.unsqueeze(1)), dim=1)


def _last_inputs(readers: Sequence[Reader], model: Model, rows: Tensor) -> list[Float[Tensor, "rows features"]]:
    width = max(reader.space.features for reader in readers)
    parts: list[list[Tensor]] = [[] for _ in readers]
    for part in chunks(len(rows), rows.shape[1] * width * _ACTIVATIONS):
        for store, value in zip(parts, model.inputs(readers, rows[part]), strict=True):
            store.append(value[:, -1])
    return [torch.cat(store) for store in parts]


def _select(leaves: list[_Leaf], readers: Sequence[Reader], model: Model, at_most: int | None) -> list[Tensor]:
    """Greedy choice of the sequence that explains most new dimensions of the space.

    Passing every test is not enough: where positions are rotations the first token repeated for ever passes too, for
    attention over equal values returns that value. Such a sequence explains no dimension that the true one does not.
    """
    reader = readers[-1]
    rows = [_normed(reader, model, leaf.ids) for leaf in leaves]
    chosen: list[Tensor] = []
    explained = torch.zeros(0, reader.space.features, dtype=torch.float64)
    left = set(range(len(leaves)))
    while left and (at_most is None or len(chosen) < at_most):
        gains = {i: _new_directions(rows[i], explained, _tolerance(reader, rows[i])) for i in left}
        best = max(left, key=lambda i: (len(gains[i]), -leaves[i].excess, -i))
        if not len(gains[best]):
            break
        chosen.append(leaves[best].ids)
        explained = torch.cat((explained, gains[best]))
        left.remove(best)
    return chosen


def _normed(reader: Reader, model: Model, ids: Tensor) -> Float[Tensor, "seq features"]:
    (z,) = model.inputs((reader,), ids.unsqueeze(0))
    return torch.nn.functional.normalize(z[0].double(), dim=-1)


def _tolerance(reader: Reader, rows: Tensor) -> float:
    """Half way, in logarithm, between what noise leaves of an explained row and a whole row."""
    return float(reader.space.expected(rows).median().clamp(max=1.0).sqrt())


def _new_directions(rows: Tensor, explained: Tensor, tolerance: float) -> Float[Tensor, "new features"]:
    """Orthonormal directions of ``rows`` outside ``explained`` (orthonormal rows)."""
    basis = explained
    for row in rows:
        # Twice: one Gram-Schmidt pass leaves rounding along directions that nearly cancel.
        rest = row - (row @ basis.T) @ basis
        rest = rest - (rest @ basis.T) @ basis
        if float(rest.norm()) > tolerance:
            basis = torch.cat((basis, (rest / rest.norm()).unsqueeze(0)))
    return basis[len(explained) :]
