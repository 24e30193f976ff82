"""Every law of this folder, read for one model, loss and batch, put side by side. No attack is run: one forward and
backward pass gives the sizes that the laws need, a second one in float64 confirms the table. Must not know files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import NotApplicableError
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject
from gradleak.theory.identifiability.attention_windows import read_bands
from gradleak.theory.identifiability.counting import AttentionShape
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.identifiability.input_kinds import InputLaw, read_input_law
from gradleak.theory.identifiability.rank import token_position_graph
from gradleak.theory.identifiability.receptive_field import distinct_contexts, propagate
from gradleak.theory.identifiability.span_table import Cell, span_table
from gradleak.theory.identifiability.symmetries import Invariance, probe_invariances
from gradleak.theory.noise.detectability import smallest_null_residual
from gradleak.theory.noise.token_power import CONDITIONS
from gradleak.theory.prediction.noise import (
    NoisyRelease,
    first_test_of,
    forecasts_of,
    positions_of,
    spectrum_and_error,
)
from gradleak.theory.prediction.types import Equations, Noise, Prediction, Row
from gradleak.theory.prediction.verdicts import Contexts, ambiguity_of, conclude, conclude_adapters, invisible

_VERIFIED_UP_TO = 60_000_000
"""Parameters up to which the table is confirmed by a float64 pass of the model itself (8 bytes each)."""


def predict(
    subject: Subject,
    batch: Batch,
    *,
    training: LocalTraining,
    noise: Noise,
    origin: str,
    adapter_rank: int | None = None,
    seed: int = 0,
) -> Prediction:
    """Reads every law for one batch.

    Args:
        origin: one sentence that says where the batch comes from.
        adapter_rank: rank of low-rank adapters that are shared instead of the weights, or None.

    Raises:
        NotApplicableError: if what is shared holds no linear-layer gradient of the first attention.
    """
    _check_applies(subject, training)
    anatomy = subject.anatomy
    block = anatomy.blocks[0]
    maps = {m.module: m for m in block.attention_inputs}
    last = anatomy.blocks[-1].attention_output.module
    flows = flow_through(subject, batch, (*maps, last))
    read = flows[last].errors.ne(0).any(-1) & batch.mask
    bands = read_bands(subject, positions=batch.inputs.shape[1])
    reach = propagate(read, batch.mask, bands=bands)[0]
    law = read_input_law(subject, positions=batch.inputs.shape[1])
    cells = span_table(reach, block, batch.inputs, batch.mask, law)
    graph = token_position_graph(batch.inputs, batch.mask, positional=law.positional)
    contexts_seen = distinct_contexts(batch.inputs, reach.visible, positional=law.positional, within=reach.output)
    invariances = probe_invariances(subject, derive(seed, "invariances"))
    equations = _equations(subject, law, invariances, tokens=int(batch.mask.sum()))
    gradient = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "gradient"))
    table = tuple(_row(cell, seen, batch) for cell, seen in zip(cells, _seen(subject, batch, law), strict=True))
    release = NoisyRelease(
        subject=subject,
        batch=batch,
        gradient=gradient,
        flows={path: flows[path] for path in maps},
        graph=graph,
        training=training,
        noise=noise,
        seed=seed,
    )
    forecasts = tuple(forecasts_of(release))
    spectrum, error = spectrum_and_error(release, invariances)
    room = anatomy.hidden_size - 1
    candidates = anatomy.vocab_size * (batch.inputs.shape[1] if law.positional else 1)
    ambiguity = ambiguity_of(graph, law)
    contexts = Contexts(distinct=contexts_seen, room=room, lit=int(reach.output.sum()))
    conclusions = [*conclude(cells[-1], ambiguity, equations, invariances, contexts)]
    if adapter_rank is not None:
        conclusions += conclude_adapters(adapter_rank, maps=len(block.attention_inputs), ambiguity=ambiguity)
    return Prediction(
        model=subject.name,
        loss=subject.loss.name,
        kind=anatomy.kind,
        batch_size=batch.size,
        seq_len=batch.inputs.shape[1],
        tokens=int(batch.mask.sum()),
        batch=origin,
        input_law=law,
        bands=bands,
        table=table,
        ambiguity=ambiguity,
        contexts=contexts_seen,
        context_room=room,
        equations=equations,
        invariances=invariances,
        spectrum=spectrum,
        error=error,
        positions=positions_of(release),
        dtype=training.dtype,
        noise=noise,
        forecasts=forecasts,
        first_test=first_test_of(release, forecasts),
        null_residual=smallest_null_residual(
            candidates=candidates, rank=max(1, cells[-1].rank), width=max(law.room, cells[-1].rank)
        ),
        conditions=CONDITIONS,
        invisible=tuple(invisible(subject, batch, reach)),
        conclusions=tuple(conclusions),
    )


def _check_applies(subject: Subject, training: LocalTraining) -> None:
    if training.share == "delta" and training.optimizer == "adamw":
        raise NotApplicableError(
            "The client would share an AdamW delta: element-wise scaling destroys the low rank that these laws are about. "
            "Predict a gradient or an SGD delta, or measure with `gradleak audit`."
        )
    if subject.anatomy.entrance or not subject.anatomy.blocks[0].plain:
        raise NotApplicableError(
            "The first attention compresses its input, gates its result or reads what other layers mixed, and these laws are "
            "about queries, keys and values that are made of single tokens by one linear map each. Measure with `gradleak audit`."
        )
    shared = set(subject.trainable())
    missing = [m.weight for m in subject.anatomy.blocks[0].attention_inputs if m.weight not in shared]
    if missing:
        raise NotApplicableError(
            f"The first attention's {', '.join(missing)} is frozen, so its gradient is not shared and no law here applies."
        )


def _seen(subject: Subject, batch: Batch, law: InputLaw) -> list[int | None]:
    """Ranks that the model itself shows in float64, for query, key, value and all; None where it cannot be told."""
    if sum(p.numel() for p in subject.parameters().values()) > _VERIFIED_UP_TO:
        return [None] * 4
    maps = subject.anatomy.blocks[0].attention_inputs
    flows = flow_through(subject, batch, [m.module for m in maps], dtype=torch.float64)
    x = flows[maps[0].module].inputs[batch.mask]
    errors = [flows[m.module].errors[batch.mask] for m in maps]
    if not all(bool(e.isfinite().all()) for e in errors):
        # A padded place whose window holds no token at all: such a softmax row is not a number in float64.
        return [None] * 4
    ranks: list[int | None] = [_rank(x.T @ e) for e in errors] if len(maps) == 3 else [None] * 3
    if len(maps) == 3 and not law.rotary:
        # Some models take their softmax in float32 whatever they are given; the errors of keys then sum to zero only so far.
        coarse = _rank(x.T @ errors[1], cut=_FLOAT32)
        ranks[1] = coarse if coarse == ranks[1] else None
    return [*ranks, _rank(x.T @ torch.cat(errors, dim=-1))]


_FLOAT64, _FLOAT32 = 1e-12, 1e-7
"""Parts of the largest singular value below which the rest is rounding."""


def _rank(gradient: Tensor, *, cut: float = _FLOAT64) -> int:
    s = torch.linalg.svdvals(gradient)
    return int((s > cut * s[0]).sum()) if float(s[0]) > 0 else 0


def _row(cell: Cell, seen: int | None, batch: Batch) -> Row:
    return Row(
        part=cell.part,
        rank=cell.rank,
        room=cell.room,
        held=int(cell.held.sum()),
        of=int(batch.mask.sum()),
        places=_places(cell.held, batch.mask),
        seen=seen,
        reason=cell.reason,
    )


def _places(held: Tensor, mask: Tensor) -> str:
    """The positions (from 1) in the span where they are the same in every record, else "varies"."""
    if bool((held == mask).all()):
        return "all"
    if not bool(held.any()):
        return "none"
    everywhere = (held | ~mask).all(0) & mask.any(0)
    if not bool((held == (mask & everywhere)).all()):
        return "varies by record"
    places = (everywhere.nonzero().flatten() + 1).tolist()
    contiguous = places == list(range(places[0], places[-1] + 1))
    return f"x{places[0]}–x{places[-1]}" if contiguous and len(places) > 1 else ", ".join(f"x{p}" for p in places)


def _equations(subject: Subject, law: InputLaw, invariances: Sequence[Invariance], *, tokens: int) -> Equations:
    block = subject.anatomy.blocks[0]
    shape = AttentionShape(
        width=block.attention_inputs[0].in_features,
        heads=block.heads,
        kv_heads=block.kv_heads,
        head_width=block.attention_output.in_features // block.heads,
        biases=all(m.bias is not None for m in (*block.attention_inputs, block.attention_output)),
        rotary=law.rotary,
    )
    lost = sum(item.dimensions for item in invariances if item.continuous and item.holds)
    per_token = subject.anatomy.hidden_size - lost
    return Equations(
        unknowns=tokens * per_token,
        per_layer=shape.equations,
        layers=len(subject.anatomy.blocks),
        most_tokens=shape.equations // per_token,
    )
