"""Whether positions can be told: up to how many tokens the gradients of both embedding tables give each token one position, and
what share of a batch's (token, position) pairs is still preferred to its alternatives at the user's noise. Read for one model and
batch by the laws of ``identifiability.placement`` and ``position_power``. Must not know files or attacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gradleak.core.batch import Batch
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import Subject
from gradleak.theory.identifiability.placement import most_placed
from gradleak.theory.identifiability.rank import TokenPositionGraph
from gradleak.theory.noise.position_power import TruePairs

_WORK = 1e10
"""Products of alternatives with the true inputs that are spent on the preference: about five seconds of one core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionForecast:
    """What is known of positions.

    Attributes:
        pairs: distinct (token, position) pairs of the batch; positions: that a token could stand at.
        most_tokens: distinct tokens up to which the gradients of both tables determine the position of each without
            noise; None if one of the tables is not shared.
        preferred: expected share of the pairs that explain the noisy gradient better than every alternative (another
            position, or two tokens that trade positions), all other pairs given; None where ``reason`` says why.
        reason: empty, or why ``preferred`` was not computed.
    """

    pairs: int
    positions: int
    most_tokens: int | None
    preferred: float | None
    reason: str


def position_forecast(
    subject: Subject,
    batch: Batch,
    errors: Mapping[str, Tensor],
    graph: TokenPositionGraph,
    *,
    rows: Mapping[str, Tensor],
    noise_std: Callable[[str], float] | None,
) -> PositionForecast | str:
    """The forecast, or a sentence for a model whose first inputs do not depend on positions.

    Args:
        errors: per map of the first attention (module path) the error signal of every distinct pair.
        rows: the gradient, of which the two tables are read where they are shared.
        noise_std: of rounding and noise, per entry of a tensor; None without noise.
    """
    if not graph.positional:
        return "positions do not enter the inputs of the first attention, so no linear test sees them."
    positions = batch.inputs.shape[1]
    tables = _tables(subject, rows)
    reason = _reason(subject, graph, positions, with_noise=noise_std is not None)
    return PositionForecast(
        pairs=graph.pairs,
        positions=positions,
        most_tokens=None if tables is None else most_placed(subject.anatomy.hidden_size, positions),
        preferred=None
        if reason or noise_std is None
        else _preferred(subject, batch, errors, graph, tables, rows, noise_std),
        reason=reason,
    )


def _tables(subject: Subject, rows: Mapping[str, Tensor]) -> tuple[str, str] | None:
    token, position = subject.anatomy.token_embedding, subject.anatomy.position_embedding
    return (token, position) if token in rows and position in rows and token and position else None


def _reason(subject: Subject, graph: TokenPositionGraph, positions: int, *, with_noise: bool) -> str:
    width = subject.anatomy.blocks[0].attention_inputs[0].in_features
    if not with_noise:
        return "without noise the span test decides, not a comparison"
    if graph.pairs >= width:
        return f"{graph.pairs} pairs of tokens and positions do not stay independent in a width of {width}"
    alternatives = graph.pairs * positions + graph.pairs**2
    if alternatives * graph.pairs * width > _WORK:
        return (
            f"{graph.pairs} pairs have {alternatives:,} alternatives, too many for a prediction; ask for fewer tokens"
        )
    return ""


def _preferred(
    subject: Subject,
    batch: Batch,
    errors: Mapping[str, Tensor],
    graph: TokenPositionGraph,
    tables: tuple[str, str] | None,
    rows: Mapping[str, Tensor],
    noise_std: Callable[[str], float],
) -> float:
    maps = subject.anatomy.blocks[0].attention_inputs
    places = torch.arange(batch.inputs.shape[1]).expand_as(batch.inputs)
    pair = graph.pair_of[batch.mask]
    token, place = (
        torch.zeros(graph.pairs, dtype=torch.int64).index_put((pair,), values[batch.mask])
        for values in (batch.inputs, places)
    )
    everywhere = token.unsqueeze(1).expand(-1, batch.inputs.shape[1])
    inputs = linear_inputs(subject, (maps[0].module,), everywhere)[maps[0].module].transpose(0, 1).double()
    own = inputs[place, torch.arange(graph.pairs)]
    signal = own.T @ torch.cat([errors[m.module].double() / noise_std(m.weight) for m in maps], dim=1)
    pairs = TruePairs(
        inputs=normalize(inputs, dim=2),
        place=place,
        token=token,
        signal=signal,
        rows=_rows_in_noise(token, batch.inputs.shape[1], tables, rows, noise_std),
    )
    return float(pairs.preference(torch.arange(graph.pairs)).mean())


def _rows_in_noise(
    token: Tensor,
    positions: int,
    tables: tuple[str, str] | None,
    rows: Mapping[str, Tensor],
    noise_std: Callable[[str], float],
) -> Tensor:
    """Each pair's row of the token table in units of the noise on a position: its own, and its share of all tokens' rows."""
    if tables is None:
        return torch.zeros(len(token), 0, dtype=torch.float64)
    spread = math.sqrt(len(token.unique()) / positions)
    return rows[tables[0]][token].double() / math.hypot(noise_std(tables[1]), noise_std(tables[0]) * spread)
