"""What a linear layer inside a transformer reads for given tokens, at the cost of the layers before it only.

Runs the subject itself, the way the client runs it, so every architecture is right by construction: no forward pass is
written again here. Must not know gradients, updates or attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradleak.models import Subject

_FLOATS_PER_CHUNK = 1_000_000
"""Bounds the captured activations of one chunk to 4 MB in float32: they stay in the cache, and the heap is reused."""


class StopForward(Exception):
    """Raised by a hook to end a forward pass once everything asked for was seen; ``run_quietly`` catches it."""


def linear_inputs(
    subject: Subject,
    paths: Sequence[str],
    ids: Int64[Tensor, "batch seq"],
    *,
    mask: Bool[Tensor, "batch seq"] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> dict[str, Float[Tensor, "batch seq features"]]:
    """The inputs of the submodules at ``paths`` for one batch of token ids.

    Args:
        subject: a text model; the pass ends as soon as every path was reached.
        paths: submodules that take one activation tensor as their first argument.
        mask: true where a token is real; all true if left out.
        parameters: values that replace the module's own parameters during the pass, by name.

    Returns:
        One tensor per path, detached.

    Raises:
        KeyError: if the forward pass never reaches one of the paths.
    """
    batch, seq = ids.shape
    seen: dict[str, Tensor] = {}

    def hook_for(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            value = args[0] if args else next(iter(kwargs.values()))
            seen[path] = value.detach().reshape(batch, seq, -1)
            if len(seen) == len(paths):
                raise StopForward

        return hook

    module = subject.module
    handles = [module.get_submodule(path).register_forward_pre_hook(hook_for(path), with_kwargs=True) for path in paths]
    try:
        run_quietly(subject, ids, mask=mask, parameters=parameters)
    finally:
        for handle in handles:
            handle.remove()
    return {path: seen[path] for path in paths}


def head_inputs(
    subject: Subject, path: str, ids: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch features"]:
    """What the classification head at ``path`` reads for each record, detached."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach())
        raise StopForward

    handle = subject.module.get_submodule(path).register_forward_pre_hook(hook)
    try:
        run_quietly(subject, ids, mask=mask)
    finally:
        handle.remove()
    return seen[0].reshape(len(ids), -1)


def run_quietly(
    subject: Subject,
    ids: Int64[Tensor, "batch seq"],
    *,
    mask: Bool[Tensor, "batch seq"] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> None:
    """Runs the subject without gradients until it ends or a hook raises ``StopForward``."""
    ids = ids.to(next(subject.module.parameters()).device)
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
    try:
        with torch.no_grad():
            subject.logits(parameters, inputs=ids, mask=real)
    except StopForward:
        pass


def chunks(count: int, floats_each: int) -> Iterator[slice]:
    """Slices of ``range(count)`` such that one slice of items with ``floats_each`` entries stays small."""
    step = max(1, _FLOATS_PER_CHUNK // max(1, floats_each))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


class LargestTensor(TorchDispatchMode):
    """While entered, ``numel`` grows to the size of the largest tensor that is made: what a row needs, told by running one.

    Most layers make few numbers per token; recurrences that are computed in blocks of fixed length make as many for a token as for a block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def reads_position(subject: Subject, path: str, ids: Int64[Tensor, " tokens"], *, positions: int) -> bool:
    """Whether the input of ``path`` changes with the position of a token (no, where positions enter by rotation)."""
    rows = ids.unsqueeze(1).expand(-1, positions)
    inputs = linear_inputs(subject, (path,), rows)[path]
    return not torch.allclose(inputs, inputs[:, :1].expand_as(inputs), rtol=1e-4, atol=_rounding(inputs))


def reads_context(subject: Subject, path: str, ids: Int64[Tensor, " tokens"]) -> bool:
    """Whether the input of ``path`` at a position depends on the tokens at earlier positions."""
    first, second = ids[:-1], ids[1:]
    last = ids[:1].expand_as(first)
    after_first = linear_inputs(subject, (path,), torch.stack((first, last), dim=1))[path][:, 1]
    after_second = linear_inputs(subject, (path,), torch.stack((second, last), dim=1))[path][:, 1]
    return not torch.allclose(after_first, after_second, rtol=1e-4, atol=_rounding(after_first))


def _rounding(values: Tensor) -> float:
    """What two roundings of the same activation may differ by: 64 units in the last place of the largest entry."""
    return 64 * torch.finfo(values.dtype).eps * float(values.abs().max())
