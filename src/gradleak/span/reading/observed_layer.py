"""Why: a linear layer "reads" its input; its gradient in the update tells which inputs it read. A reader pairs the
place in the model with the column space of what was shared.
Must not know how sequences are put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import reads_context
from gradleak.mechanics.subspace.adapters import Shared, adapter_space
from gradleak.mechanics.subspace.completion import completed_space, determined, is_pruned
from gradleak.mechanics.subspace.noise_level import Noise
from gradleak.mechanics.subspace.null_laws import Null, fit_null, log_odds
from gradleak.mechanics.subspace.subspace import Subspace, column_space
from gradleak.models import Anatomy, LinearMap
from gradleak.span.reading.model_mismatch import MismatchOf

FALSE_ALARM_RATE = 1e-3
"""Probability that one whole family of tests accepts any non-member (Bonferroni within the family)."""


_UNDETERMINED = 1
"""Places whose survivors do not determine them, before later ones, of which fewer survive, are not tried."""

NoiseOf = Callable[[str], Noise]
"""Standard deviation per entry that is known to sit on a released tensor, by parameter name."""


def _nowhere(_path: str, _rounding: float = 0.0) -> float:
    return 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ObservedLayer:
    """A place in the model whose input was recorded in the update.

    Attributes:
        path: module whose input is tested.
        space: column space of the shared gradients of all maps that read this input, or what adapters tell of it.
        weights: the parameters behind it.
        left_out: whether entries of the gradient were left out and those that survive do not determine the space.
        most: number of inputs that the shared tensors can hold, where that is less than the width.
    """

    path: str
    space: Subspace
    weights: tuple[str, ...]
    most: int | None = None
    left_out: bool = False

    @property
    def hint(self) -> str:
        """What a space without any token may mean; empty where nothing can be said."""
        if self.most is None or self.space.inputs < self.most:
            return ""
        return f" Adapters show {self.most} inputs at most, and all are in use: adapter_bag weighs the tokens of larger batches."


def observe_layer(
    update: Mapping[str, Tensor],
    maps: Sequence[LinearMap],
    model: Model,
    *,
    noise_std: NoiseOf,
    summands: int,
    mismatch: MismatchOf = _nowhere,
    expected_rank: int = 0,
) -> ObservedLayer | None:
    """The reader of the input that ``maps`` share: from their own gradients, or else from those of adapters on them.

    Returns:
        None if the update holds neither, or only zeros, or adapters whose few numbers more inputs than that fill.
    """
    if not maps:
        return None
    path, shared = maps[0].module, [m for m in maps if m.weight in update and bool(update[m.weight].any())]
    if shared:
        gradients = [m.as_matrix(update[m.weight]).T for m in shared]
        stds = [noise_std(m.weight) for m in shared]
        space = column_space(gradients, noise_std=stds, summands=summands, expected_rank=expected_rank)
        pruned = any(is_pruned(gradient) for gradient in gradients)
        if pruned:
            space = completed_space(gradients, space, summands=summands, expected_rank=expected_rank)
        return ObservedLayer(
            path=path,
            space=space.with_mismatch(mismatch(path, space.relative_noise)),
            weights=tuple(m.weight for m in shared),
            left_out=pruned and not determined(space),
        )
    factors = Shared(update=update, noise_std=noise_std, summands=summands)
    found = adapter_space(factors, model.subject.anatomy.adapters_of(tuple(maps)), model.value)
    if found is None:
        return None
    space, weights = found
    most = sum(min(update[name].shape) for name in weights)
    return ObservedLayer(
        path=path, space=space.with_mismatch(mismatch(path, space.relative_noise)), weights=weights, most=most
    )


def first_layer(
    update: Mapping[str, Tensor],
    model: Model,
    *,
    noise_std: NoiseOf,
    summands: int,
    mismatch: MismatchOf = _nowhere,
) -> ObservedLayer:
    """The reader of the first attention's input. Raises ``NotApplicableError`` naming what the update lacks."""
    maps = model.subject.anatomy.first_maps()
    reader = observe_layer(update, maps, model, noise_std=noise_std, summands=summands, mismatch=mismatch)
    if reader is not None:
        return reader
    adapters = model.subject.anatomy.adapters_of(maps)
    if any(a.up.weight in update and bool(update[a.up.weight].any()) for a in adapters):
        raise NotApplicableError(
            "The adapters of the first attention are at their start (B = 0) or too near, where one of rank r tells fewer than r inputs "
            f"apart; the batch holds more than ranks {', '.join(str(a.rank) for a in adapters)} allow. "
            "adapter_bag weighs the tokens of such a batch."
        )
    raise NotApplicableError(
        f"The span attack reads the gradient of the first attention's projections ({', '.join(m.weight for m in maps)}) "
        "or of adapters on them; the update holds none of them, or only zeros. What later layers read depends on whole sequences, "
        "and there no token can be tested by itself."
    )


def hides_first_position(anatomy: Anatomy, first: ObservedLayer) -> bool:
    """Whether only queries were shared, which never show the first position: over one key the softmax has no derivative."""
    block = anatomy.blocks[0]
    if anatomy.entrance or block.fused:
        return False
    queries = block.attention_inputs[:1]
    factors = {each.weight for a in anatomy.adapters_of(queries) for each in (a.down, a.up)}
    return set(first.weights) <= {queries[0].weight, *factors}


def context_layers(
    update: Mapping[str, Tensor],
    model: Model,
    *,
    noise_std: NoiseOf,
    summands: int,
    mismatch: MismatchOf = _nowhere,
    expected_rank: int = 0,
    at_most: int = 2,
) -> tuple[ObservedLayer, ...]:
    """The first readers behind the first attention whose input depends on the other tokens and is not full rank."""
    few = torch.arange(min(4, model.vocab_size))
    found: list[ObservedLayer] = []
    undetermined = 0
    for maps in model.subject.anatomy.maps_behind():
        reader = observe_layer(
            update,
            maps,
            model,
            noise_std=noise_std,
            summands=summands,
            mismatch=mismatch,
            expected_rank=expected_rank,
        )
        if reader is None or reader.space.rank >= reader.space.features:
            continue
        if reader.left_out:
            undetermined += 1
            if undetermined > _UNDETERMINED:
                break
            continue
        if reads_context(model.subject, reader.path, few):
            found.append(reader)
            expected_rank = max(expected_rank, reader.space.inputs)
        if len(found) == at_most:
            break
    return tuple(found)


def later_layers(
    update: Mapping[str, Tensor],
    model: Model,
    behind: ObservedLayer,
    *,
    length: int,
    noise_std: NoiseOf,
    summands: int,
    mismatch: MismatchOf = _nowhere,
) -> tuple[ObservedLayer, ...]:
    """Inputs of the second block that every position of a record reaches, behind ``behind``, where their space leaves room outside.

    A classifier's last block is none: from one position that is read, each head hands every position a multiple of one error for its key
    and one for its value, so that a record shows twice as many directions as there are heads, and one more. Queries alone never show the first
    position.
    """
    anatomy = model.subject.anatomy
    classifies = model.subject.loss.labels_records
    if len(anatomy.blocks) < (3 if classifies else 2) or anatomy.entrance:
        return ()
    block = anatomy.blocks[1]
    if classifies and not _reaches_all(model, anatomy.blocks[2].path, length):
        return ()
    groups = (block.readers_of_input(), block.mlp_inputs)
    if behind.path in {maps[0].module for maps in groups if maps}:
        return ()
    layers = [
        observe_layer(
            update,
            maps,
            model,
            noise_std=noise_std,
            summands=summands,
            mismatch=mismatch,
            expected_rank=behind.space.inputs,
        )
        for maps in groups
    ]
    queries = set() if block.fused else {block.attention_inputs[0].weight}
    return tuple(
        layer
        for layer in layers
        if layer is not None and layer.space.rest and not layer.left_out and not set(layer.weights) <= queries
    )


def _reaches_all(model: Model, block: str, length: int) -> bool:
    """Whether what is classified depends on what every position hands to ``block``, the third: behind windows shorter than the text it does not."""
    seen: list[Tensor] = []

    def watch(
        _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        state = args[0] if args else kwargs["hidden_states"]
        seen.append(state.detach().requires_grad_())
        return ((seen[-1], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": seen[-1]})

    subject = model.subject
    ids = torch.arange(length).unsqueeze(0) % max(1, model.vocab_size)
    ids = ids.to(next(subject.module.parameters()).device)
    handle = subject.module.get_submodule(block).register_forward_pre_hook(watch, with_kwargs=True)
    try:
        logits = subject.logits(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool))
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits[..., 0].sum(), seen[-1])
    return bool(gradient.reshape(length, -1).any(dim=1).all())


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The context test on a set of rows.

    Attributes:
        passed: nearer to a member's expected residual than to the null's cut.
        possible: below the null's cut: no non-member is expected there. Noise that hides directions altogether makes a
            member show more than its expected residual, but not as much as that.
        excess: distance from the floor (mean log ratio).
    """

    passed: Bool[Tensor, " rows"]
    possible: Bool[Tensor, " rows"]
    excess: Float[Tensor, " rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Per reader, the law of non-members at one place and the residual that a member typically shows there."""

    nulls: tuple[Null, ...]
    typical: tuple[float, ...]


def calibrate(
    readers: Sequence[ObservedLayer], null_vectors: Sequence[Float[Tensor, "samples features"]]
) -> Calibration:
    """Reads the calibration off inputs that are almost surely no members."""
    return Calibration(
        nulls=tuple(fit_null(r.space.residual(z)) for r, z in zip(readers, null_vectors, strict=True)),
        typical=tuple(float(r.space.expected(z).median()) for r, z in zip(readers, null_vectors, strict=True)),
    )


def judge_rows(
    readers: Sequence[ObservedLayer],
    vectors: Sequence[Float[Tensor, "rows features"]],
    calibration: Calibration,
    *,
    tests: int,
) -> Verdict:
    """Tests rows against several readers, each as far as it can tell members from the null.

    The reader with the widest margin between a member's expected residual and the null's cut decides; another one may
    object only if its own margin is at least a decade.
    """
    margins, possible, odds, excesses = [], [], [], []
    for reader, rows, null, typical in zip(readers, vectors, calibration.nulls, calibration.typical, strict=True):
        cut = null.cut(FALSE_ALARM_RATE / max(1, tests))
        residual, expected = reader.space.residual(rows), reader.space.expected(rows)
        margins.append(math.log10(max(cut, 1e-300) / typical))
        possible.append(residual < cut)
        odds.append(log_odds(residual, expected, null_cut=cut))
        excesses.append((residual.clamp(min=1e-12) / expected).log().clamp(min=0.0))
    best = max(range(len(margins)), key=margins.__getitem__)
    usable = [i for i, margin in enumerate(margins) if i == best or margin >= 1.0]
    against = torch.stack([odds[i] for i in usable])
    return Verdict(
        passed=(against < 0).all(0),
        possible=torch.stack([possible[i] for i in usable]).all(0),
        excess=torch.stack([excesses[i] for i in usable]).mean(0),
    )
