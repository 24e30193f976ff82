"""What a linear map is *for* shows in the data flow, not in its name. One tiny forward is cut at every linear
map; the autograd graph between the cuts tells which map feeds which, and whether a softmax lies between them.
Must not know roles (``reading`` does) or any architecture.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from gradleak.models.calling import backbone, run_module

LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """The first run of one linear map.

    Attributes:
        path: the module's path.
        read: its input ``[... in_features]``, attached to the graph that made it.
        made: its output ``[... out_features]``, a leaf: the graph is cut here.
        feeders: paths of the maps that feed ``read`` with no other map between, and whether a softmax lies between.
        heads: score matrices per record of that softmax; 0 without one.
    """

    path: str
    module: nn.Module
    read: Tensor
    made: Tensor
    feeders: frozenset[tuple[str, bool]]
    heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One forward of a module.

    Attributes:
        calls: linear maps by path, in the order in which they first ran.
        tables: learned tables by the identity of their weight, with the ids that were looked up.
        logits: what the module returned as logits, or None.
        hidden: what the module's backbone returned as last hidden state, or None.
    """

    calls: Mapping[str, Call]
    tables: tuple[tuple[Tensor, Tensor], ...]
    logits: Tensor | None
    hidden: Tensor | None


class _Lookups(TorchFunctionMode):
    """Notes every table that is looked up, also where a module wraps the lookup in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.embedding:
            bound = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self.seen.append((bound["weight"], bound["input"]))
        return function(*args, **(kwargs or {}))


def trace(module: nn.Module, inputs: Tensor, *, severed: Collection[str] = ()) -> Trace:
    """Runs ``module`` once in eval mode on ``inputs`` (embeddings ``[1 seq model]`` or pixels) and records the run.

    Args:
        severed: paths of linear maps that are no part of the run's story: they feed nothing and are not listed.
    """
    calls: dict[str, Call] = {}
    leaves: dict[int, tuple[str, Tensor]] = {}
    hidden: list[Any] = []

    def cut(path: str, child: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor):  # a linear layer in name only: it returns more than a linear map
            return output
        leaf = output.detach().requires_grad_()
        if path not in calls:
            feeders, heads = _feeders(args[0], leaves)
            calls[path] = Call(path=path, module=child, read=args[0], made=leaf, feeders=feeders, heads=heads)
        leaves[id(leaf)] = (path, leaf)
        return leaf.clone()

    handles = [
        child.register_forward_hook(lambda child, args, output, path=path: cut(path, child, args, output))
        for path, child in module.named_modules()
        if isinstance(child, LINEAR) and path not in severed
    ]
    handles += [
        module.get_submodule(path).register_forward_hook(lambda child, args, output: output.detach())
        for path in severed
    ]
    below = backbone(module)
    if below is not module:
        handles.append(below.register_forward_hook(lambda child, args, output: hidden.append(output)))
    lookups = _Lookups()
    try:
        with evaluating(module), torch.enable_grad(), lookups:
            output = run_module(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(
        calls=calls,
        tables=tuple(lookups.seen),
        logits=getattr(output, "logits", None),
        hidden=getattr(hidden[0], "last_hidden_state", None) if hidden else None,
    )


def influence_on(made: Tensor, leaf: Tensor, *, position: int) -> Tensor:
    """Which positions of ``leaf`` the given position of ``made`` depends on: booleans ``[seq]``."""
    rows = made.reshape(-1, made.shape[-1])
    weights = torch.linspace(0.5, 1.5, rows.shape[-1], device=rows.device, dtype=rows.dtype)
    # What is read may be a mixture of several runs of a map, of which the first is kept here.
    (gradient,) = torch.autograd.grad(
        (rows[position] * weights).sum(), leaf, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient.reshape(rows.shape[0], -1).ne(0).any(dim=-1)


def same_input(one: Call, other: Call) -> bool:
    """Whether two maps read one and the same tensor."""
    return one.read.shape == other.read.shape and torch.equal(one.read, other.read)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; every submodule's own mode is restored after."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode


def _feeders(read: Tensor, leaves: Mapping[int, tuple[str, Tensor]]) -> tuple[frozenset[tuple[str, bool]], int]:
    found: set[tuple[str, bool]] = set()
    heads = 0
    if read.grad_fn is None:
        return frozenset(), heads
    pending: list[tuple[Any, bool]] = [(read.grad_fn, False)]
    seen: set[tuple[Any, bool]] = set()
    while pending:
        state = pending.pop()
        if state in seen:
            continue
        seen.add(state)
        node, crossed = state
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in leaves:
            found.add((leaves[id(variable)][0], crossed))
        if "Softmax" in node.name():
            scores = getattr(node, "_saved_result", None)
            heads = heads if crossed or scores is None else math.prod(scores.shape[:-2])
            crossed = True
        pending.extend((parent, crossed) for parent, _ in node.next_functions if parent is not None)
    return frozenset(found), heads
