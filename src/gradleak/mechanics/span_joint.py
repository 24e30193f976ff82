"""Why: where no single test settles a continuation, all continuations of all prefixes are weighed side by side: what a
prefix brings, and what a token brings, is common to a row or a column of that table; what is left is whether they belong
together. Must not know encoders, labels or losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.heads import Heads, read_heads
from gradleak.mechanics.probe import chunks
from gradleak.mechanics.span_context import Grid
from gradleak.mechanics.span_preference import Preference, evidence, weigh_rows
from gradleak.mechanics.span_readers import Model
from gradleak.mechanics.span_reading import Stream, read_stream

_REFERENCES = 5
"""Prefixes that are continued by every token, to know what a token brings to any."""
_CLOSER = 3
"""Continuations of a prefix that are looked at more closely."""
_CLEAR = 30.0
"""Lead in evidence of the first attention's layers from which later layers are not asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """Sequences of full length, and the evidence for each of their tokens (log-likelihood ratio; the first has none).

    Attributes:
        tested: continuations weighed in all; finished: False if the clock ran out.
    """

    sequences: tuple[Int64[Tensor, " length"], ...]
    evidence: tuple[Float[Tensor, " length"], ...]
    tested: int
    finished: bool

    def supported(self) -> tuple[Int64[Tensor, " length"], ...]:
        """Sequences up to the first token that the evidence does not favor; of one token alone nothing is known."""
        ends = [int((certain > 0).long().cumprod(0).sum()) + 1 for certain in (e[1:] for e in self.evidence)]
        return tuple(ids[:end] for ids, end in zip(self.sequences, ends, strict=True) if end > 1)


def grow_jointly(
    grid: Grid,
    preferred: Sequence[Preference],
    model: Model,
    *,
    records: int,
    clock: Clock,
) -> Joined:
    """One token at a time, for all records at once.

    Args:
        grid: candidates per position.
        preferred: layers in the order of the model.
        records: number of sequences wanted; up to twice as many prefixes are followed where tokens repeat.
    """
    near = Near.of(grid, preferred, model)
    rows = _first(grid, preferred, model)[:records]
    certain = torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device)
    tested, finished = grid.counts[0], True
    for p in range(1, grid.length):
        finished = not clock.spent()
        if not finished or not grid.counts[p]:
            break
        clock.progress(p / grid.length, f"position {p + 1} of {grid.length}, {len(rows)} prefixes")
        found = weigh_continuations(grid, rows, near, preferred, model)
        tested += found.numel()
        parents, children = _chosen(found, at_most=2 * records)
        rows = torch.cat((rows[parents], children.unsqueeze(1)), dim=1)
        certain = torch.cat((certain[parents], found[parents, children].unsqueeze(1)), dim=1)
    chosen = _distinct(rows, certain, records)
    return Joined(
        sequences=tuple(grid.ids(rows[chosen])), evidence=tuple(certain[chosen]), tested=tested, finished=finished
    )


def _distinct(
    rows: Int64[Tensor, "sequences length"], certain: Float[Tensor, "sequences length"], at_most: int
) -> Int64[Tensor, " chosen"]:
    """Sequences that together hold most candidates: each in turn has the most that no earlier one holds, then most evidence."""
    if len(rows) <= at_most:
        return torch.arange(len(rows), device=rows.device)
    held = torch.zeros(rows.shape[1], int(rows.max()) + 1, dtype=torch.bool, device=rows.device)
    places = torch.arange(rows.shape[1], device=rows.device)
    strength = certain.sum(dim=1).clamp(-1e6, 1e6) / 1e7
    chosen: list[int] = []
    for _ in range(at_most):
        value = (~held[places, rows]).sum(dim=1) + strength
        value[chosen] = -torch.inf
        chosen.append(int(value.argmax()))
        held[places, rows[chosen[-1]]] = True
    return torch.tensor(chosen, device=rows.device)


def _first(grid: Grid, preferred: Sequence[Preference], model: Model) -> Int64[Tensor, "candidates one"]:
    """Candidates of the first position, likeliest first: their weights summed in units of each layer's spread."""
    weights = weigh_rows(preferred, model, grid.tokens[: grid.counts[0], :1])
    centered = weights - weights.median(dim=0).values
    spread = centered.abs().median(dim=0).values.clamp(min=1e-6)
    return (centered / spread).sum(dim=1).argsort().unsqueeze(1)


def weigh_continuations(
    grid: Grid,
    rows: Int64[Tensor, "prefixes length"],
    near: Near | None,
    preferred: Sequence[Preference],
    model: Model,
    *,
    strangers: int = 0,
) -> Float[Tensor, "prefixes tokens"]:
    """Evidence for each continuation: the first attention weighs all, every layer those that stand out.

    Args:
        strangers: random tokens weighed beside the candidates, at most ``DECOYS``: where candidates are few they show what
            a wrong continuation looks like.
    """
    place = rows.shape[1]
    count = grid.counts[place]
    tokens = grid.tokens[: count + strangers, place]
    if near is None:
        return evidence(_table(grid.ids(rows), tokens, preferred, model, None))[:, :count]
    first = evidence(near.weigh(rows, len(tokens)))[:, :count]
    two = first.topk(min(2, count), dim=1).values
    open_ = (two[:, 0] - two[:, -1] < _CLEAR).nonzero().flatten() if count > 1 else two.new_zeros(0).long()
    if not len(open_):
        return first
    closer = torch.zeros_like(first, dtype=torch.bool)
    closer.scatter_(1, first.topk(min(_CLOSER, count), dim=1).indices, True)
    few = closer[open_].any(dim=0).nonzero().flatten()
    asked = torch.cat((few, torch.arange(count, len(tokens), device=few.device)))
    # What a token brings to any prefix is told by prefixes that it does not belong to as well as by others.
    spread = torch.linspace(0, len(rows) - 1, min(_REFERENCES, len(rows)), device=rows.device).long()
    some = torch.cat((open_, spread)).unique()
    wanted = torch.ones(len(some), len(asked), dtype=torch.bool, device=rows.device)
    wanted[:, : len(few)] = closer[some][:, few]
    wanted[torch.isin(some, spread)] = True
    found = evidence(_table(grid.ids(rows[some]), tokens[asked], preferred, model, wanted))[:, : len(few)]
    result = first.clone()
    result[open_] = -torch.inf
    result[open_.unsqueeze(1), few] = found[torch.isin(some, open_)]
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """The layers that read the first attention's result, weighed through kept queries, keys and values.

    Attributes:
        stream: the residual stream (and the output map's bias) of each candidate; with ``weight``, the output map, and ``norm``,
            it gives what the feed-forward part reads; None where the stream does not simply add up.
    """

    heads: Heads
    preferred: tuple[Preference, ...]
    stream: Stream | None

    @staticmethod
    def of(grid: Grid, preferred: Sequence[Preference], model: Model) -> Near | None:
        """None if attention cannot be intercepted or its output map was not shared."""
        block = model.subject.anatomy.blocks[0]
        by_path = {p.path: p for p in preferred}
        output = by_path.get(block.attention_output.module)
        heads = read_heads(model.subject, grid.tokens, parameters=model.parameters) if output else None
        if output is None or heads is None:
            return None
        behind = next((by_path[m.module] for m in block.behind_attention()[1:] if m.module in by_path), None)
        stream = None if behind is None else read_stream(behind.path, block.attention_output, model, grid.tokens)
        both = (output, behind) if stream is not None and behind is not None else (output,)
        return Near(heads=heads, preferred=both, stream=stream)

    def weigh(self, rows: Int64[Tensor, "prefixes length"], count: int) -> Float[Tensor, "prefixes extensions layers"]:
        extensions = torch.arange(count, device=rows.device)
        found: list[Tensor] = []
        for part in chunks(len(rows), 3 * count * self.heads.width):
            attended = self.heads.extend(rows[part], extensions)
            weights = [self.preferred[0].weigh(attended)]
            if self.stream is not None:
                made = self.stream.behind(attended, extensions, rows.shape[1])
                weights.append(self.preferred[1].weigh(made))
            found.append(torch.stack(weights, dim=-1))
        return torch.cat(found)


def _table(
    starts: Tensor, tokens: Tensor, preferred: Sequence[Preference], model: Model, wanted: Tensor | None
) -> Float[Tensor, "prefixes tokens layers"]:
    """Weights of the wanted continuations; NaN elsewhere."""
    every = torch.ones(len(starts), len(tokens), dtype=torch.bool, device=tokens.device)
    which = every if wanted is None else wanted
    parents, children = which.nonzero(as_tuple=True)
    made = weigh_rows(preferred, model, torch.cat((starts[parents], tokens[children].unsqueeze(1)), dim=1))
    table = made.new_full((*which.shape, len(preferred)), torch.nan)
    table[parents, children] = made
    return table


def _chosen(found: Float[Tensor, "prefixes tokens"], *, at_most: int) -> tuple[Tensor, Tensor]:
    """The best continuation of every prefix; then others with evidence in favor, the strongest first."""
    best = found.argmax(dim=1)
    parents = torch.arange(len(found), device=found.device)
    others = found.clone()
    others[parents, best] = -torch.inf
    room = max(0, at_most - len(found))
    flat = others.flatten()
    more = flat.topk(min(room, flat.numel())).indices
    more = more[flat[more] > 0]
    return torch.cat((parents, more // found.shape[1])), torch.cat((best, more % found.shape[1]))
