"""How a model tells positions apart decides which attacks can order the tokens. Read from behavior: what is looked
up with increasing ids, and whether swapping two earlier tokens changes what the last one attends to.
Must not know any architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradleak.models.anatomy import Adapter, Block, PositionKind
from gradleak.models.calling import reads_pixels, run_module
from gradleak.models.running.attention import sample_inputs
from gradleak.models.running.tracing import Trace, evaluating


@dataclass(frozen=True, kw_only=True, slots=True)
class Positions:
    """The kind of positions, the parameter name of a learned table, and the longest input in tokens."""

    kind: PositionKind
    table: str | None
    longest: int | None


def read_positions(
    module: nn.Module, run: Trace, first: Block, names: dict[int, str], adapters: tuple[Adapter, ...] = ()
) -> Positions:
    """Reads how positions enter the model whose first block is ``first``."""
    length = run.calls[first.attention_output.module].read.numel() // first.attention_output.in_features
    if reads_pixels(module):
        table = _patch_table(module, run, length, names)
        return Positions(kind="learned" if table else "none", table=table, longest=length)
    for weight, ids in run.tables:
        if id(weight) in names and _counts_up(ids, length):
            return Positions(kind="learned", table=names[id(weight)], longest=weight.shape[0] - int(ids.flatten()[0]))
    kind = _kind_without_table(module, first, adapters)
    longest = getattr(module.config, "max_position_embeddings", None) if kind == "rotary" else None
    return Positions(kind=kind, table=None, longest=longest)


def _counts_up(ids: Tensor, length: int) -> bool:
    flat = ids.flatten()
    return flat.numel() == length and bool((flat.diff() == 1).all())


def _patch_table(module: nn.Module, run: Trace, length: int, names: dict[int, str]) -> str | None:
    for weight, ids in run.tables:
        if id(weight) in names and _counts_up(ids, ids.numel()) and ids.numel() in (length, length - 1):
            return names[id(weight)]
    for name, parameter in module.named_parameters():
        if parameter.ndim == 3 and tuple(parameter.shape[:2]) == (1, length):
            return name
    return None


def _kind_without_table(module: nn.Module, first: Block, adapters: tuple[Adapter, ...]) -> PositionKind:
    """Swaps the two tokens before the last one; a model without positions attends to the same set as before.

    With queries and keys silenced, only a bias that is added to the scores can still tell the difference.
    """
    if not _order_matters(module, first, adapters, scale=1.0):
        return "none"
    return "alibi" if _order_matters(module, first, adapters, scale=0.0) else "rotary"


def _order_matters(module: nn.Module, first: Block, adapters: tuple[Adapter, ...], *, scale: float) -> bool:
    inputs = sample_inputs(module)
    last = inputs.shape[1] - 1
    # The nearest two, which a window of three tokens still holds.
    swapped = inputs[:, [*range(last - 2), last - 1, last - 2, last]]
    before, after = (_attended(module, first, adapters, each, scale) for each in (inputs, swapped))
    # A bias of the smallest customary slope moves this by 1e-3 and more; rounding stays a hundred times below.
    tolerance = max(1e-4, 50 * torch.finfo(before.dtype).eps)
    return bool((before - after).norm() > tolerance * before.norm())


def _attended(module: nn.Module, first: Block, adapters: tuple[Adapter, ...], inputs: Tensor, scale: float) -> Tensor:
    """What the first attention hands to the last position, ``[width]``, with queries and keys scaled."""
    seen: list[Tensor] = []
    # A fused map makes the values too: shrink it instead of silencing it. Scores then shrink with the square.
    if first.fused:
        scale = max(scale, 1e-3)
    targets = {each.module for each in first.scoring()}
    paths = [*targets, *(adapter.up.module for adapter in adapters if adapter.target in targets)]
    modules = dict(module.named_modules())

    def silence(_module: nn.Module, _args: Any, made: Any) -> Tensor:
        return made * scale

    handles = [modules[path].register_forward_hook(silence) for path in paths]
    handles.append(
        modules[first.attention_output.module].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    )
    try:
        with evaluating(module), torch.no_grad():
            run_module(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0].reshape(-1, first.attention_output.in_features)[-1]
