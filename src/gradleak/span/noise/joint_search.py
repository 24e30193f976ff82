"""Why: where it is known which token stands at which position, but not in which record, sequences grow by a matching: each
token of the next position continues one prefix, and a prefix that none continues has ended. Must not know encoders or losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.span.decoder.continuations import DECOYS, Grid
from gradleak.span.likelihood.reading import Preference
from gradleak.span.noise.record_search import Joined, Near, weigh_continuations
from gradleak.span.reading.readers import FALSE_ALARM_RATE, Model

_NEVER = -1e6


def match_jointly(grid: Grid, preferred: Sequence[Preference], model: Model, *, records: int, clock: Clock) -> Joined:
    """One position at a time, for all records at once.

    Args:
        grid: candidates per position, each of which some record holds there.
        preferred: layers in the order of the model.
        records: of the batch; a prefix that all of them share is split when their tokens part.
    """
    near = Near.of(grid, preferred, model)
    device = grid.tokens.device
    rows = torch.arange(grid.counts[0], device=device).unsqueeze(1)
    certain = torch.zeros(len(rows), 1, dtype=torch.float64, device=device)
    ended: list[tuple[Tensor, Tensor]] = []
    tested = grid.counts[0]
    for p in range(1, grid.length):
        if not grid.counts[p]:
            break
        clock.progress(p / grid.length, f"position {p + 1} of {grid.length}, {len(rows)} prefixes")
        found = weigh_continuations(grid, rows, near, preferred, model, clock=clock, strangers=DECOYS)
        if found is None:
            break
        found = found.clamp(min=_NEVER)
        tested += found.numel()
        parents, children = (side.to(device) for side in _matched(found.cpu(), records=records - len(ended)))
        over = torch.ones(len(rows), dtype=torch.bool, device=device).index_fill(0, parents, False)
        ended += zip(grid.ids(rows[over]), certain[over], strict=True)
        rows = torch.cat((rows[parents], children.unsqueeze(1)), dim=1)
        certain = torch.cat((certain[parents], found[parents, children].unsqueeze(1)), dim=1)
    ended += zip(grid.ids(rows), certain, strict=True)
    return Joined(
        sequences=tuple(ids for ids, _ in ended),
        evidence=tuple(each for _, each in ended),
        tested=tested,
        finished=not clock.spent(),
    )


def _matched(
    found: Float[Tensor, "prefixes tokens"], *, records: int
) -> tuple[Int64[Tensor, " next"], Int64[Tensor, " next"]]:
    """Prefix and token of every continuation.

    The matching with most evidence comes first. A token left over splits the prefix that it fits best; a prefix left over
    takes a token that another one has too, where chance would hardly favor it so much and records are left.
    """
    left, right = (torch.from_numpy(side) for side in linear_sum_assignment(found.numpy(), maximize=True))
    prefixes, tokens = found.shape
    if tokens > prefixes:
        spare = torch.ones(tokens, dtype=torch.bool).index_fill(0, right, False).nonzero().flatten()
        left, right = torch.cat((left, found[:, spare].argmax(dim=0))), torch.cat((right, spare))
    elif prefixes > tokens:
        spare = torch.ones(prefixes, dtype=torch.bool).index_fill(0, left, False).nonzero().flatten()
        value, token = found[spare].max(dim=1)
        sure = value > -torch.log(torch.tensor(FALSE_ALARM_RATE / found.numel()))
        left, right = torch.cat((left, spare[sure])), torch.cat((right, token[sure]))
    order = left.argsort(stable=True)
    return left[order], right[order]
