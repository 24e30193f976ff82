"""The weight gradient of a linear map is a sum of outer products, one per token, and a matching attack needs only
distances to it. Holding the factors instead of the product lets many candidate batches share one pass (no gradient is
formed by autograd, so they do not mix), and each weight-sized residual lives only while it is in the processor's cache.

For y = x Wᵀ, loss L:  dL/dW = Σ_t δ_t x_tᵀ  with δ_t = dL/dy_t.   For a norm y = w ∘ x̂ + b:  dL/dw = Σ_t δ_t ∘ x̂_t.
For a table y_t = s·E[i_t]:  dL/dE = Σ_t s·e(i_t) δ_tᵀ  with e(i) the i-th unit vector.

Must not know any attack or defense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from gradleak.mechanics.client.outer_products import FactoredMatrix, Part, RowSum, Simulated
from gradleak.models import Subject


def simulate_gradients(
    subject: Subject, names: tuple[str, ...], inputs: Tensor, targets: Tensor, mask: Tensor, *, restarts: int
) -> Simulated | None:
    """Gradients of several candidate batches in one forward and one backward pass, differentiable in the candidates.

    Args:
        names: the parameters asked for.
        inputs: embeddings or pixels, ``[restarts·batch ...]``; ``targets`` and ``mask`` likewise.

    Returns:
        name → gradient per restart, or None if a parameter sits in a kind of module that has no rule here; the caller
        then differentiates one candidate after the other.
    """
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    parts = _factor(subject, tuple(owners), subject.parameters(), inputs, targets, mask, restarts)
    if parts is None:
        return None
    return {name: reduce(_add, map(_without_rows, parts[name])) for name in names if name in parts}


def factor_gradients(
    subject: Subject,
    names: tuple[str, ...],
    inputs: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    restarts: int,
    weights: Mapping[str, Tensor] = MappingProxyType({}),
) -> Mapping[str, tuple[Part, ...]] | None:
    """As ``simulate_gradients``, with nothing added up: one part per use of a parameter, tables in factors too.

    Args:
        inputs: token ids, embeddings or pixels, ``[restarts·batch ...]``. With ids the token embedding has its part.
        weights: parameters that stand in for the model's own.

    Returns:
        name → its parts; a parameter that two modules share (a tied head) has the parts of both. None as there.
    """
    uses = _uses(subject.module, names)
    paths = tuple(dict.fromkeys(path for path, _ in uses))
    values = subject.parameters() | dict(weights)
    factors = _factor(subject, paths, values, inputs, targets, mask, restarts)
    if factors is None:
        return None
    canonical: dict[str, tuple[Part, ...]] = {}
    for (path, own), name in uses.items():
        parts = factors.get(f"{path}.{own}" if path else own, ())
        canonical[name] = canonical.get(name, ()) + parts
    return {name: parts for name, parts in canonical.items() if parts}


def _uses(module: nn.Module, names: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """(module path, attribute) → name of the parameter, for every module that holds one of the named parameters."""
    by_id = {id(module.get_parameter(name)): name for name in names}
    held = {
        (path, own): by_id[id(parameter)]
        for path, owner in module.named_modules()
        for own, parameter in owner.named_parameters(recurse=False)
        if id(parameter) in by_id
    }
    # A module that holds a parameter together with one inside it passes it on and does not use it.
    return {
        (path, own): name
        for (path, own), name in held.items()
        if not any(inner.startswith(f"{path}.") and other == name for (inner, _), other in held.items())
    }


def _factor(
    subject: Subject,
    paths: tuple[str, ...],
    values: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    mask: Tensor,
    restarts: int,
) -> dict[str, tuple[Part, ...]] | None:
    """One forward and one backward pass; the parts by the path of the module that was used."""
    with _tapped(subject.module, paths, values, inputs.shape[0]) as tap:
        if tap is None:
            return None
        # The number format is that of the candidates; token ids leave the model's own.
        dtype = inputs.dtype if inputs.is_floating_point() else None
        frozen = {name: value.detach().to(dtype) for name, value in values.items()}
        logits = subject.logits(frozen | tap.expanded, mask=mask, **{_key(subject, inputs): inputs})
    loss = subject.loss.per_group(logits, targets, groups=restarts).sum()
    points = [seen.output for seen in tap.seen] + list(tap.expanded.values())
    slopes = torch.autograd.grad(loss, points, create_graph=torch.is_grad_enabled(), allow_unused=True)
    parts: dict[str, tuple[Part, ...]] = {}
    for seen, slope in zip(tap.seen, slopes, strict=False):
        if slope is not None:
            for name, part in _gradients(seen, slope, restarts).items():
                parts[name] = (*parts.get(name, ()), part)
    for name, slope in zip(tap.expanded, slopes[len(tap.seen) :], strict=True):
        if slope is not None:
            parts[name] = (slope.reshape(restarts, -1, *slope.shape[1:]).sum(1),)
    return parts


def _key(subject: Subject, inputs: Tensor) -> str:
    if subject.modality == "image":
        return "pixels"
    return "embeddings" if inputs.is_floating_point() else "inputs"


@dataclass(frozen=True, slots=True)
class _Seen:
    """One call of a module with parameters: what went in and what came out."""

    module: nn.Module
    prefix: str
    input: Tensor
    output: Tensor
    table: Tensor | None


@dataclass(frozen=True, slots=True)
class _Tap:
    seen: list[_Seen]
    expanded: dict[str, Tensor]


@contextmanager
def _tapped(
    module: nn.Module, paths: tuple[str, ...], values: Mapping[str, Tensor], records: int
) -> Iterator[_Tap | None]:
    """Listens to the modules at ``paths`` for the duration of one forward pass."""
    tap = _Tap([], {})
    handles = []
    try:
        for path in paths:
            owner = module.get_submodule(path)
            if not _has_rule(owner):
                inside = [f"{path}.{n}" if path else n for n, _ in owner.named_parameters(recurse=False)]
                loose = {name: values[name] for name in inside}
                if any(p.ndim != 3 or p.shape[0] != 1 for p in loose.values()):
                    yield None
                    return
                # A parameter that broadcasts over records gets one row per record, so that restarts do not mix.
                tap.expanded.update(
                    (n, p.detach().expand(records, -1, -1).clone().requires_grad_()) for n, p in loose.items()
                )
                continue
            handles.append(owner.register_forward_hook(_listener(tap, path, records)))
        yield tap
    finally:
        for handle in handles:
            handle.remove()


def _listener(tap: _Tap, path: str, records: int) -> Any:
    def listen(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if isinstance(module, nn.Embedding) and output.shape[0] != records:
            # A table that is looked up once for all records: one copy per record, so that restarts do not mix.
            output = output.reshape(1, *output.shape[-2:]).expand(records, -1, -1)
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        # Read while it runs: the values that stand in for the module's own are gone afterwards.
        table = module.weight.detach() if isinstance(module, nn.Embedding) else None
        tap.seen.append(_Seen(module, path, args[0] if args else output, output, table))
        return output

    return listen


def _has_rule(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == module.stride and module.groups == 1 and set(module.padding) == {0}
    return isinstance(module, nn.Linear | Conv1D | nn.Embedding) or _is_elementwise(module)


def _is_elementwise(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return bool(own) and set(own) <= {"weight", "bias"} and all(p.ndim == 1 for p in own.values())


def _gradients(seen: _Seen, slope: Tensor, restarts: int) -> dict[str, Part]:
    """Gradients of one module call by parameter name."""
    prefix = f"{seen.prefix}." if seen.prefix else ""
    if isinstance(seen.module, nn.Embedding):
        return {f"{prefix}weight": _embedding_gradient(seen, slope, restarts)}
    if isinstance(seen.module, nn.Conv2d):
        return _patch_gradients(seen, slope, restarts, prefix)
    delta = slope.reshape(restarts, -1, slope.shape[-1])
    parts: dict[str, Part] = {}
    if getattr(seen.module, "bias", None) is not None:
        parts[f"{prefix}bias"] = delta.sum(1)
    if isinstance(seen.module, nn.Linear | Conv1D):
        x = seen.input.reshape(restarts, -1, seen.input.shape[-1])
        left, right = (x, delta) if isinstance(seen.module, Conv1D) else (delta, x)
        parts[f"{prefix}weight"] = FactoredMatrix(left=left, right=right)
    elif "weight" in dict(seen.module.named_parameters(recurse=False)):
        unit = _normalized(seen.module, seen.input).reshape(restarts, -1, slope.shape[-1])
        parts[f"{prefix}weight"] = (delta * unit).sum(1)
    return parts


def _normalized(module: nn.Module, x: Tensor) -> Tensor:
    """x̂ of a norm y = w ∘ x̂ + b (or (1 + w) ∘ x̂): its output at w = 1 minus that at w = 0."""
    if type(module) is nn.LayerNorm:
        return nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    own = dict(module.named_parameters(recurse=False))
    ones, zeros = ({n: torch.full_like(p, v) for n, p in own.items()} for v in (1.0, 0.0))
    ones.update({n: z for n, z in zeros.items() if n == "bias"})
    return functional_call(module, ones, (x,)) - functional_call(module, zeros, (x,))


def _patch_gradients(seen: _Seen, slope: Tensor, restarts: int, prefix: str) -> dict[str, Part]:
    conv = seen.module
    assert isinstance(conv, nn.Conv2d)
    patches = nn.functional.unfold(seen.input, conv.kernel_size, stride=conv.stride).transpose(1, 2)
    delta = slope.flatten(2).transpose(1, 2).reshape(restarts, -1, slope.shape[1])
    x = patches.reshape(restarts, -1, patches.shape[-1])
    parts: dict[str, Part] = {f"{prefix}weight": FactoredMatrix(left=delta, right=x)}
    if conv.bias is not None:
        parts[f"{prefix}bias"] = delta.sum(1)
    return parts


def _embedding_gradient(seen: _Seen, slope: Tensor, restarts: int) -> RowSum:
    """The error signals with the rows of the lookup table that they go to."""
    assert seen.table is not None
    table = seen.table.to(slope.dtype)
    index, factor = _looked_up(seen, table)
    rows = factor * slope.reshape(restarts, -1, table.shape[1])
    return RowSum(index=index.reshape(restarts, -1), rows=rows, height=table.shape[0])


def _looked_up(seen: _Seen, table: Tensor) -> tuple[Tensor, float]:
    """Rows of the table that were read, and the factor that the module multiplies them by."""
    if type(seen.module) is nn.Embedding:
        return seen.input.expand(seen.output.shape[:-1]), 1.0
    output = seen.output.detach()
    if not seen.input.is_floating_point() and seen.input.shape == output.shape[:-1] and _in_range(seen.input, table):
        read = table[seen.input]
        factor = float((read * output).sum() / read.square().sum().clamp_min(torch.finfo(read.dtype).tiny))
        if torch.allclose(factor * read, output, rtol=1e-5, atol=1e-6 * float(output.abs().max())):
            return seen.input, factor
    # A subclass may shift the indices that it is given, so the rows are found by comparison.
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(output.reshape(-1, table.shape[1]), table, compute_mode=exact).argmin(1), 1.0


def _in_range(index: Tensor, table: Tensor) -> bool:
    return bool((index >= 0).all()) and bool((index < table.shape[0]).all())


def _without_rows(part: Part) -> Tensor | FactoredMatrix:
    return part.dense() if isinstance(part, RowSum) else part


def _add(a: Tensor | FactoredMatrix, b: Tensor | FactoredMatrix) -> Tensor | FactoredMatrix:
    """Sum of two gradients of one parameter (a module that is called twice)."""
    if isinstance(a, FactoredMatrix) and isinstance(b, FactoredMatrix):
        return FactoredMatrix(left=torch.cat((a.left, b.left), 1), right=torch.cat((a.right, b.right), 1))
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return a + b
