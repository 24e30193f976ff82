"""Why: the weight gradient of a linear map is a sum of outer products, one per token, and a matching attack needs only
distances to it. Holding the factors instead of the product lets many candidate batches share one pass (no gradient is
formed by autograd, so they do not mix), and each weight-sized residual lives only while it is in the processor's cache.

For y = x Wᵀ, loss L:  dL/dW = Σ_t δ_t x_tᵀ  with δ_t = dL/dy_t.   For a norm y = w ∘ x̂ + b:  dL/dw = Σ_t δ_t ∘ x̂_t.

Must not know any attack or defense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from gradleak.mechanics.losses import group_losses
from gradleak.models import Subject


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterSum:
    """A stack of matrices Σ_t left_t right_tᵀ, never formed.

    Attributes:
        left: ``[restarts tokens rows]``; right: ``[restarts tokens columns]``.
    """

    left: Float[Tensor, "restarts tokens rows"]
    right: Float[Tensor, "restarts tokens columns"]

    def dense(self) -> Float[Tensor, "restarts rows columns"]:
        return self.left.transpose(1, 2) @ self.right

    def scaled(self, factor: float | Float[Tensor, " restarts"]) -> OuterSum:
        by = factor.view(-1, 1, 1) if isinstance(factor, Tensor) else factor
        return OuterSum(left=self.left * by, right=self.right)

    def inner(self, other: Tensor) -> Float[Tensor, " restarts"]:
        """Frobenius inner product with one matrix (any shape of the same entries)."""
        matrix = other.reshape(self.left.shape[2], self.right.shape[2])
        return ((self.left @ matrix) * self.right).sum((1, 2))

    def square(self) -> Float[Tensor, " restarts"]:
        """Squared Frobenius norm, from the two Gram matrices of the tokens."""
        return ((self.left @ self.left.transpose(1, 2)) * (self.right @ self.right.transpose(1, 2))).sum((1, 2))

    def distance(self, other: Tensor, l1: float) -> Float[Tensor, " restarts"]:
        """‖M − other‖² + l1·‖M − other‖₁ per restart, differentiable once in the factors."""
        matrix = other.reshape(self.left.shape[2], self.right.shape[2])
        return _Distance.apply(self.left, self.right, matrix, l1)


class _Distance(torch.autograd.Function):
    """Residual, value and both factor gradients while one residual is hot; the residual is not kept."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, target: Tensor, l1: float) -> Tensor:
        wants_gradient = any(ctx.needs_input_grad)
        values = left.new_empty(left.shape[0])
        to_left, to_right = (torch.empty_like(left), torch.empty_like(right)) if wants_gradient else (None, None)
        for i in range(left.shape[0]):
            residual = torch.addmm(target, left[i].T, right[i], beta=-1)
            flat = residual.view(-1)
            values[i] = torch.dot(flat, flat)
            if l1:
                values[i] += l1 * torch.linalg.vector_norm(flat, 1)
            if to_left is not None and to_right is not None:
                # Half the slope, 2 D + l1 sign D, as few passes over a weight-sized tensor as there can be.
                half = torch.sign(residual).mul_(l1 / 2).add_(residual) if l1 else residual
                torch.mm(right[i], half.T, out=to_left[i]).mul_(2)
                torch.mm(left[i], half, out=to_right[i]).mul_(2)
        ctx.save_for_backward(to_left, to_right)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        to_left, to_right = ctx.saved_tensors
        scale = grad_outputs[0].view(-1, 1, 1)
        return scale * to_left, scale * to_right, None, None


Simulated = Mapping[str, Tensor | OuterSum]
"""Candidate updates by name: dense tensors with a leading ``restarts`` axis, or factors."""


def scale(part: Tensor | OuterSum, factor: Float[Tensor, " restarts"]) -> Tensor | OuterSum:
    """A candidate gradient, dense or in factors, times one number per restart."""
    return part.scaled(factor) if isinstance(part, OuterSum) else part * factor.view(-1, *[1] * (part.ndim - 1))


def squared_norm(simulated: Simulated) -> Float[Tensor, " restarts"]:
    """Squared Euclidean norm of every candidate update, over all its tensors."""
    parts = [p.square() if isinstance(p, OuterSum) else p.square().flatten(1).sum(1) for p in simulated.values()]
    return torch.stack(parts).sum(0)


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
    with _tapped(subject.module, names, inputs.shape[0]) as tap:
        if tap is None:
            return None
        key = "pixels" if subject.modality == "image" else "embeddings"
        frozen = {name: value.detach() for name, value in subject.parameters().items()}
        logits = subject.logits(frozen | tap.expanded, mask=mask, **{key: inputs})
    loss = group_losses(logits, targets, subject.loss, groups=restarts).sum()
    points = [seen.output for seen in tap.seen] + list(tap.expanded.values())
    slopes = torch.autograd.grad(loss, points, create_graph=torch.is_grad_enabled(), allow_unused=True)
    found: dict[str, Tensor | OuterSum] = {}
    for seen, slope in zip(tap.seen, slopes, strict=False):
        if slope is None:
            continue
        for name, part in _gradients(seen, slope, restarts).items():
            found[name] = part if name not in found else _add(found[name], part)
    for name, slope in zip(tap.expanded, slopes[len(tap.seen) :], strict=True):
        if slope is not None:
            found[name] = slope.reshape(restarts, -1, *slope.shape[1:]).sum(1)
    return {name: found[name] for name in names if name in found}


@dataclass(frozen=True, slots=True)
class _Seen:
    """One call of a module with parameters: what went in and what came out."""

    module: nn.Module
    prefix: str
    input: Tensor
    output: Tensor


@dataclass(frozen=True, slots=True)
class _Tap:
    seen: list[_Seen]
    expanded: dict[str, Tensor]


@contextmanager
def _tapped(module: nn.Module, names: tuple[str, ...], records: int) -> Iterator[_Tap | None]:
    """Listens to every module that owns one of the named parameters, for the duration of one forward pass."""
    tap = _Tap([], {})
    handles = []
    try:
        for path, owner in _owners(module, names).items():
            if not _has_rule(owner):
                loose = {f"{path}.{n}" if path else n: p for n, p in owner.named_parameters(recurse=False)}
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


def _owners(module: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    paths = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return {path: module.get_submodule(path) for path in paths}


def _listener(tap: _Tap, path: str, records: int) -> Any:
    def listen(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if isinstance(module, nn.Embedding) and output.shape[0] != records:
            # A table that is looked up once for all records: one copy per record, so that restarts do not mix.
            output = output.reshape(1, *output.shape[-2:]).expand(records, -1, -1)
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        tap.seen.append(_Seen(module, path, args[0] if args else output, output))
        return output

    return listen


def _has_rule(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == module.stride and module.groups == 1 and set(module.padding) == {0}
    return isinstance(module, nn.Linear | Conv1D | nn.Embedding) or _is_elementwise(module)


def _is_elementwise(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return bool(own) and set(own) <= {"weight", "bias"} and all(p.ndim == 1 for p in own.values())


def _gradients(seen: _Seen, slope: Tensor, restarts: int) -> dict[str, Tensor | OuterSum]:
    """Gradients of one module call by parameter name."""
    prefix = f"{seen.prefix}." if seen.prefix else ""
    if isinstance(seen.module, nn.Embedding):
        return {f"{prefix}weight": _embedding_gradient(seen, slope, restarts)}
    if isinstance(seen.module, nn.Conv2d):
        return _patch_gradients(seen, slope, restarts, prefix)
    delta = slope.reshape(restarts, -1, slope.shape[-1])
    found: dict[str, Tensor | OuterSum] = {}
    if getattr(seen.module, "bias", None) is not None:
        found[f"{prefix}bias"] = delta.sum(1)
    if isinstance(seen.module, nn.Linear | Conv1D):
        x = seen.input.reshape(restarts, -1, seen.input.shape[-1])
        left, right = (x, delta) if isinstance(seen.module, Conv1D) else (delta, x)
        found[f"{prefix}weight"] = OuterSum(left=left, right=right)
    else:
        unit = _normalized(seen.module, seen.input).reshape(restarts, -1, slope.shape[-1])
        found[f"{prefix}weight"] = (delta * unit).sum(1)
    return found


def _normalized(module: nn.Module, x: Tensor) -> Tensor:
    """x̂ of a norm y = w ∘ x̂ + b (or (1 + w) ∘ x̂): its output at w = 1 minus that at w = 0."""
    if type(module) is nn.LayerNorm:
        return nn.functional.layer_norm(x, module.normalized_shape, eps=module.eps)
    own = dict(module.named_parameters(recurse=False))
    ones, zeros = ({n: torch.full_like(p, v) for n, p in own.items()} for v in (1.0, 0.0))
    ones.update({n: z for n, z in zeros.items() if n == "bias"})
    return functional_call(module, ones, (x,)) - functional_call(module, zeros, (x,))


def _patch_gradients(seen: _Seen, slope: Tensor, restarts: int, prefix: str) -> dict[str, Tensor | OuterSum]:
    conv = seen.module
    assert isinstance(conv, nn.Conv2d)
    patches = nn.functional.unfold(seen.input, conv.kernel_size, stride=conv.stride).transpose(1, 2)
    delta = slope.flatten(2).transpose(1, 2).reshape(restarts, -1, slope.shape[1])
    x = patches.reshape(restarts, -1, patches.shape[-1])
    found: dict[str, Tensor | OuterSum] = {f"{prefix}weight": OuterSum(left=delta, right=x)}
    if conv.bias is not None:
        found[f"{prefix}bias"] = delta.sum(1)
    return found


def _embedding_gradient(seen: _Seen, slope: Tensor, restarts: int) -> Tensor:
    """Sums of the error signals by row of a lookup table."""
    table = seen.module.get_parameter("weight").detach()
    if type(seen.module) is nn.Embedding:
        index = seen.input.expand(seen.output.shape[:-1]).reshape(restarts, -1)
    else:
        # A subclass may shift the indices that it is given, so the rows are found by comparison.
        rows = seen.output.detach().reshape(-1, table.shape[1])
        exact = "donot_use_mm_for_euclid_dist"
        index = torch.cdist(rows, table, compute_mode=exact).argmin(1).reshape(restarts, -1)
    delta = slope.reshape(restarts, -1, table.shape[1])
    total = delta.new_zeros(restarts, *table.shape)
    return total.scatter_add(1, index.unsqueeze(-1).expand_as(delta), delta)


def _add(a: Tensor | OuterSum, b: Tensor | OuterSum) -> Tensor | OuterSum:
    """Sum of two gradients of one parameter (a module that is called twice)."""
    if isinstance(a, OuterSum) and isinstance(b, OuterSum):
        return OuterSum(left=torch.cat((a.left, b.left), 1), right=torch.cat((a.right, b.right), 1))
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return a + b
