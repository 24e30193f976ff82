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
from gradleak.mechanics.probing.heads import Heads, read_heads
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks
from gradleak.span.decoder.continuations import Grid
from gradleak.span.decoder.projections import Stream, read_stream
from gradleak.span.likelihood.co_membership import SameRecordEvidence
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood, evidence, weigh_rows

_REFERENCES = 5
"""Prefixes that are continued by every token, to know what a token brings to any."""
_CLOSER = 3
"""Continuations of a prefix that are looked at more closely."""
_CLEAR = 30.0
"""Lead in evidence of the first attention's layers from which later layers are not asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointResult:
    """Sequences of full length, and the evidence for each of their tokens (log-likelihood ratio; the first has none).

    Attributes:
        tested: continuations weighed in all; finished: False if the clock ran out.
    """

    sequences: tuple[Int64[Tensor, " length"], ...]
    evidence: tuple[Float[Tensor, " length"], ...]
    tested: int
    finished: bool

    def supported(self) -> tuple[Int64[Tensor, " length"], ...]:
        """Sequences up to the last token that the evidence favors; of one token alone nothing is known."""
        ends = [1 + max((certain[1:] > 0).nonzero().flatten().tolist(), default=-1) + 1 for certain in self.evidence]
        return tuple(ids[:end] for ids, end in zip(self.sequences, ends, strict=True) if end > 1)


def search_records_jointly(
    grid: Grid,
    preferred: Sequence[GradientLikelihood],
    model: Model,
    *,
    records: int,
    clock: Clock,
    same_record: SameRecordEvidence | None = None,
) -> JointResult:
    """One token at a time, for all records at once.

    Args:
        grid: candidates per position.
        preferred: layers in the order of the model.
        records: number of sequences wanted; up to twice as many prefixes are followed where tokens repeat.
        same_record: of the tokens; once the time is spent it alone says how prefixes go on.
    """
    near = CachedLayers.of(grid, preferred, model)
    rows = _first(grid, preferred, model, clock)[: 2 * records if same_record else records]
    certain = torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device)
    tested = grid.counts[0]
    for p in range(1, grid.length):
        if not grid.counts[p]:
            break
        clock.progress(p / grid.length, f"position {p + 1} of {grid.length}, {len(rows)} prefixes")
        found = weigh_continuations(grid, rows, near, preferred, model, clock=clock, same_record=same_record)
        if found is None:
            break
        tested += found.numel()
        parents, children = _chosen(found, at_most=2 * records)
        rows = torch.cat((rows[parents], children.unsqueeze(1)), dim=1)
        certain = torch.cat((certain[parents], found[parents, children].unsqueeze(1)), dim=1)
    chosen = _distinct(rows, certain, records)
    return JointResult(
        sequences=tuple(grid.ids(rows[chosen])),
        evidence=tuple(certain[chosen]),
        tested=tested,
        finished=not clock.spent(),
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


def _first(
    grid: Grid, preferred: Sequence[GradientLikelihood], model: Model, clock: Clock
) -> Int64[Tensor, "candidates one"]:
    """Candidates of the first position, likeliest first: their weights summed in units of each layer's spread."""
    weights = weigh_rows(preferred, model, grid.tokens[: grid.counts[0], :1], clock)
    if weights is None:
        return torch.arange(grid.counts[0], device=grid.tokens.device).unsqueeze(1)
    centered = weights - weights.median(dim=0).values
    spread = centered.abs().median(dim=0).values.clamp(min=1e-6)
    return (centered / spread).sum(dim=1).argsort().unsqueeze(1)


def weigh_continuations(
    grid: Grid,
    rows: Int64[Tensor, "prefixes length"],
    near: CachedLayers | None,
    preferred: Sequence[GradientLikelihood],
    model: Model,
    *,
    clock: Clock,
    same_record: SameRecordEvidence | None = None,
    strangers: int = 0,
) -> Float[Tensor, "prefixes tokens"] | None:
    """Evidence for each continuation: what costs least weighs all of them, what costs more the prefixes that it leaves open.

    Args:
        same_record: asked first, where given.
        strangers: random tokens weighed beside the candidates, at most ``DECOYS``: where candidates are few they show what
            a wrong continuation looks like.

    Returns:
        What was known when the time was spent; None if that is nothing.
    """
    place = rows.shape[1]
    count = grid.counts[place]
    tokens = grid.tokens[: count + strangers, place]
    told = None if same_record is None else same_record.weigh(grid.ids(rows), tokens)
    found = None if told is None else evidence(told)[:, :count]
    if near is not None:
        some, open_ = _asked(found, rows)
        made = near.weigh(rows[some], len(tokens), clock) if len(open_) else None
        if made is not None:
            both = made if told is None else torch.cat((told[some], made), dim=-1)
            found = _replaced(found, evidence(both)[:, :count], some, open_)
        elif len(open_):
            return found
    some, open_ = _asked(found, rows)
    if not len(open_):
        return found
    closer = torch.ones(len(rows), count, dtype=torch.bool, device=rows.device)
    if found is not None:
        closer = torch.zeros_like(closer).scatter_(1, found.topk(min(_CLOSER, count), dim=1).indices, True)
    few = closer[open_].any(dim=0).nonzero().flatten()
    asked = torch.cat((few, torch.arange(count, len(tokens), device=few.device)))
    wanted = torch.ones(len(some), len(asked), dtype=torch.bool, device=rows.device)
    # What a token brings to any prefix is told by prefixes that it does not belong to as well as by others.
    wanted[:, : len(few)] = closer[some][:, few] | torch.isin(some, _references(rows)).unsqueeze(1)
    made = _table(grid.ids(rows[some]), tokens[asked], preferred, model, wanted, clock)
    if made is None:
        return found
    both = made if told is None else torch.cat((made, told[some][:, asked]), dim=-1)
    last = torch.full((len(some), count), -torch.inf, dtype=torch.float64, device=rows.device)
    last[:, few] = evidence(both)[:, : len(few)]
    return _replaced(found, last, some, open_)


def _references(prefixes: Int64[Tensor, "prefixes length"]) -> Int64[Tensor, " references"]:
    return torch.linspace(0, len(prefixes) - 1, min(_REFERENCES, len(prefixes)), device=prefixes.device).long()


def _asked(
    found: Float[Tensor, "prefixes tokens"] | None, prefixes: Int64[Tensor, "prefixes length"]
) -> tuple[Tensor, Tensor]:
    """Prefixes that are weighed next: the second those that are open, the first with them some for comparison."""
    if found is None:
        every = torch.arange(len(prefixes), device=prefixes.device)
        return every, every
    two = found.topk(min(2, found.shape[1]), dim=1).values
    open_ = (two[:, 0] - two[:, -1] < _CLEAR).nonzero().flatten() if found.shape[1] > 1 else two.new_zeros(0).long()
    return torch.cat((open_, _references(prefixes))).unique(), open_


def _replaced(
    found: Float[Tensor, "prefixes tokens"] | None,
    later: Float[Tensor, "some tokens"],
    some: Int64[Tensor, " some"],
    open_: Int64[Tensor, " open"],
) -> Float[Tensor, "prefixes tokens"]:
    if found is None:
        return later
    result = found.clone()
    result[open_] = later[torch.isin(some, open_)]
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedLayers:
    """The layers that read the first attention's result, weighed through kept queries, keys and values.

    Attributes:
        stream: the residual stream (and the output map's bias) of each candidate; with ``weight``, the output map, and ``norm``,
            it gives what the feed-forward part reads; None where the stream does not simply add up.
    """

    heads: Heads
    preferred: tuple[GradientLikelihood, ...]
    stream: Stream | None

    @staticmethod
    def of(grid: Grid, preferred: Sequence[GradientLikelihood], model: Model) -> CachedLayers | None:
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
        return CachedLayers(heads=heads, preferred=both, stream=stream)

    def weigh(
        self, rows: Int64[Tensor, "prefixes length"], count: int, clock: Clock
    ) -> Float[Tensor, "prefixes extensions layers"] | None:
        """None if the time was spent before the end."""
        extensions = torch.arange(count, device=rows.device)
        found: list[Tensor] = []
        for part in chunks(len(rows), 3 * count * self.heads.width):
            if clock.spent():
                return None
            attended = self.heads.extend(rows[part], extensions)
            weights = [self.preferred[0].weigh(attended)]
            if self.stream is not None:
                made = self.stream.behind(attended, extensions, rows.shape[1])
                weights.append(self.preferred[1].weigh(made))
            found.append(torch.stack(weights, dim=-1))
        return torch.cat(found)


def _table(
    starts: Tensor, tokens: Tensor, preferred: Sequence[GradientLikelihood], model: Model, wanted: Tensor, clock: Clock
) -> Float[Tensor, "prefixes tokens layers"] | None:
    """Weights of the wanted continuations; NaN elsewhere; None if the time was spent before the end."""
    parents, children = wanted.nonzero(as_tuple=True)
    sequences = torch.cat((starts[parents], tokens[children].unsqueeze(1)), dim=1)
    made = weigh_rows(preferred, model, sequences, clock)
    if made is None:
        return None
    table = made.new_full((*wanted.shape, len(preferred)), torch.nan)
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
