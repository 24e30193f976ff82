"""Why: before the first attention a position knows its own token only, so which tokens stand where can be told under noise without
their order in records: pairs of token and position that together explain the first attention's gradient. Must not know sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from scipy.special import chdtri
from torch import Tensor

from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.span.candidates.membership import nearest_pairs
from gradleak.span.candidates.types import Candidates
from gradleak.span.likelihood.energy_test import DEPENDENT
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood
from gradleak.span.noise.embedding_evidence import EmbeddingEvidence
from gradleak.span.noise.position_exchange import TableGradients, swap_positions
from gradleak.span.noise.sparse_selection import eliminate, omp_select, stand_out
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, NoiseOf, ObservedLayer

_SHORTLIST = 6
"""Candidate pairs per dimension that the sparse search starts from: it held every true pair of 16 x 16 at noise 0.1, and 182 of
185 at 0.3 (one batch); twice as many find no more and cost twice as much."""

_SWEEPS = 4
"""Times that pairs which the tables did not show are asked for."""


def noisy_candidates(
    update: Mapping[str, Tensor],
    model: Model,
    first: ObservedLayer,
    *,
    noise_std: NoiseOf,
    positions: int,
    rng: torch.Generator,
) -> Candidates | None:
    """Tokens at positions that together explain the first attention's gradient; None if it was not shared.

    They are sought among those that the tables' gradients show, or in the whole vocabulary where these were not shared.
    """
    reading = GradientLikelihood.of(update, model.subject.anatomy.first_maps(), noise_std)
    if reading is None:
        return None
    told = EmbeddingEvidence.of(update, model.subject.anatomy, positions=positions)
    if told is not None and told.shares is not None and told.tables is not None:
        rate = FALSE_ALARM_RATE / (len(told.tokens) * positions)
        return _placed(told.tokens, told.shares, told.tables, reading, model, rate=rate)
    known = torch.arange(model.vocab_size, device=reading.root.device) if told is None else told.tokens
    count = _SHORTLIST * first.space.features
    tokens, places = nearest_pairs(first, model, reading.root, tokens=known, positions=positions, count=count, rng=rng)
    positional = bool(places.any())
    inputs = unit_inputs(tokens, places, reading.path, model)
    rate = FALSE_ALARM_RATE / (len(known) * (positions if positional else 1))
    members = omp_select(inputs, reading.gradient, false_alarms=rate)
    found = by_position(
        tokens[members],
        places[members],
        reading.root.new_zeros(len(members)),
        positions=positions,
        positional=positional,
    )
    if told is not None or not positional or not len(members):
        # Tokens that a table tells are sought at all positions at once, which places them better than one place first.
        return found
    again = _replaced(tokens[members], places[members], reading, model, positions=positions, rate=rate)
    return max(found, again, key=lambda one: _explained(one, reading, model, rate))


def _replaced(
    tokens: Tensor, places: Tensor, reading: GradientLikelihood, model: Model, *, positions: int, rate: float
) -> Candidates:
    """The tokens of a sparse search, each at one place first, the strongest of those it was found at."""
    known, row = tokens.unique(return_inverse=True)
    # Members come the strongest first; of a token the first place stays.
    shares = reading.gradient.new_zeros(len(known), positions)
    shares[row, places] = 1.0 / torch.arange(1, len(tokens) + 1, dtype=shares.dtype, device=shares.device)
    nothing = TableGradients(rows=shares.new_zeros(len(known), 1), places=shares.new_zeros(positions, 1))
    found = _placed(known, shares, nothing, reading, model, rate=rate)
    own = [residuals == 0 for residuals in found.residuals]
    return replace(
        found,
        tokens=tuple(ids[kept] for ids, kept in zip(found.tokens, own, strict=True)),
        residuals=tuple(residuals[kept] for residuals, kept in zip(found.residuals, own, strict=True)),
    )


def _explained(found: Candidates, reading: GradientLikelihood, model: Model, rate: float) -> float:
    """Energy of the gradient that pairs with energy of their own explain, less what each must hold."""
    tokens = torch.cat(found.tokens)
    if not len(tokens):
        return 0.0
    places = torch.cat([torch.full_like(ids, place) for place, ids in enumerate(found.tokens)])
    frame = torch.linalg.qr(unit_inputs(tokens, places, reading.path, model).T).Q
    energy = float((frame.T @ reading.gradient).square().sum())
    return energy - len(tokens) * float(chdtri(reading.gradient.shape[1], rate))


def _placed(
    known: Tensor, shares: Tensor, tables: TableGradients, reading: GradientLikelihood, model: Model, *, rate: float
) -> Candidates:
    """Every token at its likeliest place, and pairs beyond that hold energy of their own.

    Places are those that the tables and the first attention's gradient together make likeliest. Where a token stands a second
    time the tables may not show it. So every token is weighed at every position beside what was found; what noise would not make so
    strong is asked with the rest, until there is nothing such. The residual is 0 of pairs that hold energy of their own and 1 of others.
    """
    count, positions = shares.shape
    device = known.device
    tokens, places = known.repeat(positions), torch.arange(positions, device=device).repeat_interleave(count)
    inputs = unit_inputs(tokens, places, reading.path, model)
    place = swap_positions(inputs.view(positions, count, -1), reading.gradient, tables, shares.argmax(dim=1))
    one_each = place * count + torch.arange(count, device=device)
    asked = members = one_each
    for _ in range(_SWEEPS):
        members = asked[eliminate(inputs[asked], reading.gradient, false_alarms=rate)]
        more = stand_out(inputs, inputs[torch.cat((one_each, members)).unique()], reading.gradient, false_alarms=rate)
        if not len(more):
            break
        asked = torch.cat((one_each, members[~torch.isin(members, one_each)], more))
    bare = one_each[~torch.isin(tokens[one_each], tokens[members])]
    chosen = torch.cat((members, bare))
    residuals = (torch.arange(len(chosen), device=device) >= len(members)).float()
    return by_position(tokens[chosen], places[chosen], residuals, positions=positions, positional=True)


def with_ambiguous(found: Candidates, model: Model, path: str) -> Candidates:
    """Also the pairs that depend on these: where tokens repeat, any of (v, p), (v, q), (w, p), (w, q) follows from the other three.

    The first attention cannot tell which of them are in the batch (rank law); what reads their order can.
    """
    positions = len(found.tokens)
    known = torch.cat(found.tokens).unique()
    if not len(known):
        return found
    tokens = known.repeat(positions)
    places = torch.arange(positions, device=known.device).repeat_interleave(len(known))
    inputs = unit_inputs(tokens, places, path, model)
    member = torch.cat([torch.isin(known, ids) for ids in found.tokens])
    frame = torch.linalg.qr(inputs[member].T).Q
    outside = 1.0 - (inputs @ frame).square().sum(dim=1)
    within = (outside < DEPENDENT) | member
    if bool((within == member).all()):
        return found
    residuals = outside.new_zeros(int(within.sum())).float()
    return by_position(tokens[within], places[within], residuals, positions=positions, positional=True)


def unit_inputs(tokens: Tensor, places: Tensor, path: str, model: Model) -> Float[Tensor, "pairs features"]:
    """Unit inputs of the first attention, in float64; what other tokens a row holds does not matter."""
    found: dict[int, Tensor] = {}
    for place in places.unique().tolist():
        row = tokens[places == place].unsqueeze(1).expand(-1, place + 1)
        found[place] = linear_inputs(model.subject, (path,), row, parameters=model.parameters)[path][:, place]
    some = next(iter(found.values()))
    inputs = some.new_empty(len(tokens), some.shape[1], dtype=torch.float64)
    for place, rows in found.items():
        inputs[places == place] = torch.nn.functional.normalize(rows.double(), dim=1)
    return inputs


def by_position(tokens: Tensor, places: Tensor, residuals: Tensor, *, positions: int, positional: bool) -> Candidates:
    """By position; the same at all of them where positions do not enter the input."""
    found = [places == place for place in range(positions)] if positional else [places == 0] * positions
    return Candidates(
        tokens=tuple(tokens[here] for here in found),
        residuals=tuple(residuals[here] for here in found),
        nearest=torch.stack([tokens[here][0] if bool(here.any()) else tokens.new_zeros(()) for here in found]),
        null_cut=1.0,
        positional=positional,
    )
