"""Softmax attention has directions in weight space along which its output does not move, so *every* honest
gradient, of any loss on any data, is orthogonal to them. This page finds those directions in a real model, verifies
them on the model itself, and turns an update into numbers that are zero for honest gradients and unit-variance noise
for white noise. Must not know the data, an attack or a defense.

Queries and keys: q → A q, k → A⁻ᵀ k leaves q·k as it is.  Values and output: v → A v, O → O A⁻¹ leaves O v as it is.
With [W | b] the weight and its bias as one more column, and sums over the query heads of one key and value head:

    Σ_h G_qh [W|b]_qhᵀ = [W|b]_k G_kᵀ        G_v [W|b]_vᵀ = Σ_h O_hᵀ G_Oh        (head_dim × head_dim each)

Positions that enter by rotation leave only those A that commute with the rotations: one complex number per rotated
plane. A norm on queries or keys leaves none of these.

A low-rank adapter B A x has the same freedom, A → M A, B → B M⁻¹:  G_A Aᵀ = Bᵀ G_B  (rank × rank).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import IGNORED, Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject
from gradleak.models.anatomy import Block, LinearMap

Kind = Literal["query-key", "value-output", "adapter"]

_HOLDS = 1e-3
"""An identity that holds leaves rounding (below 1e-4 of the gradient's size in float32); one that does not, its size."""

_PROBE_LENGTH = 12
_PROBE_RECORDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The rows (``[head_dim in]`` after ``as_matrix``) or columns of one head in one map, bias as one more column."""

    map: LinearMap
    start: int
    stop: int
    columns: bool = False

    def names(self) -> tuple[str, ...]:
        bias = None if self.columns else self.map.bias
        return (self.map.weight,) if bias is None else (self.map.weight, bias)

    def read(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "head_dim width"]:
        matrix = self.map.as_matrix(tensors[self.map.weight]).double()
        if self.columns:
            return matrix[:, self.start : self.stop].T
        rows = matrix[self.start : self.stop]
        if self.map.bias is None:
            return rows
        return torch.cat((rows, tensors[self.map.bias].double()[self.start : self.stop, None]), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Which A are free: those that commute with rotations of ``planes`` by different angles, anything on the rest.

    Attributes:
        name: in words.
        planes: pairs of entries that rotate together; rotated: the entries from this one on do not rotate.
    """

    name: str
    planes: tuple[tuple[int, int], ...] = ()
    rotated: int = 0

    def equations(self, dim: int) -> int:
        return 2 * len(self.planes) + (dim - self.rotated) ** 2

    def standardize(
        self,
        gap: Float[Tensor, "head_dim head_dim"],
        left: Float[Tensor, "head_dim head_dim"],
        right: Float[Tensor, "head_dim head_dim"],
    ) -> Float[Tensor, " equations"]:
        """The free components of ``gap``, whose covariance is I ⊗ ``left`` + ``right`` ⊗ I, as independent unit normals.

        On the entries that do not rotate: diagonal in the two eigenbases. A plane (a, b) has the components
        T_aa + T_bb and T_ab − T_ba, independent of each other and of all else, both with the same variance.
        """
        rest = slice(self.rotated, None)
        size, basis = torch.linalg.eigh(left[rest, rest])
        other_size, other_basis = torch.linalg.eigh(right[rest, rest])
        values = [(other_basis.T @ gap[rest, rest] @ basis).flatten()]
        variances = [(other_size[:, None] + size[None, :]).flatten()]
        if self.planes:
            a, b = torch.tensor(self.planes).T
            total = (left + right).diagonal()
            values += [gap[a, a] + gap[b, b], gap[a, b] - gap[b, a]]
            variances += [total[a] + total[b]] * 2
        value, variance = torch.cat(values), torch.cat(variances)
        known = variance > 1e-12 * variance.max().clamp_min(torch.finfo(torch.float64).tiny)
        return value[known] / variance[known].sqrt()


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """T(G) = Σ G_left W_leftᵀ − Σ W_right G_rightᵀ is zero in the components that ``form`` leaves free.

    Attributes:
        block: index of the block, or of the adapter; head: of the key and value head.
    """

    kind: Kind
    block: int
    head: int
    form: Form
    left: tuple[Slice, ...]
    right: tuple[Slice, ...]

    def names(self) -> frozenset[str]:
        return frozenset(name for part in (*self.left, *self.right) for name in part.names())

    def standardized(self, update: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Float[Tensor, " equations"]:
        """Independent numbers, zero for an honest gradient; white noise of variance σ² on it makes each N(0, σ²).

        With such noise Cov T = σ² (I ⊗ W_left W_leftᵀ + W_right W_rightᵀ ⊗ I).
        """
        return self.form.standardize(*self.parts(update, weights))

    def parts(self, update: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """T, W_left W_leftᵀ and W_right W_rightᵀ."""
        left, right = self._stack(self.left, weights), self._stack(self.right, weights)
        gap = self._stack(self.left, update) @ left.T - right @ self._stack(self.right, update).T
        return gap, left @ left.T, right @ right.T

    def size(self, update: Mapping[str, Tensor]) -> float:
        """Root mean square of the update's entries that the identity reads."""
        entries = torch.cat([part.read(update).flatten() for part in (*self.left, *self.right)])
        return float(entries.square().mean().sqrt())

    def equations(self) -> int:
        return self.form.equations(self.left[0].stop - self.left[0].start)

    @staticmethod
    def _stack(parts: Sequence[Slice], tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([part.read(tensors) for part in parts], 1)


def verified_identities(subject: Subject) -> tuple[tuple[Identity, ...], float]:
    """The identities that this model obeys, and the largest relative rounding that they leave.

    Every way in which queries, keys and values may lie in the maps, and every kind of rotation, is a candidate. A
    candidate is kept if it holds on the gradient of made-up data of our own; of several, the one with most equations.
    """
    gradient = _probe_gradient(subject)
    weights = {name: value.detach() for name, value in subject.parameters().items()}
    kept: list[Identity] = []
    floor = 0.0
    for index, block in enumerate(subject.anatomy.blocks):
        for kind in ("query-key", "value-output"):
            holding = _holding(block, index, kind, gradient, weights)
            if holding is not None:
                kept.extend(holding[0])
                floor = max(floor, holding[1])
    for index, adapter in enumerate(subject.anatomy.adapters):
        identity = Identity(
            kind="adapter",
            block=index,
            head=0,
            form=Form(name="any"),
            left=(Slice(map=adapter.down, start=0, stop=adapter.rank),),
            right=(Slice(map=adapter.up, start=0, stop=adapter.rank, columns=True),),
        )
        holding = _first_that_holds([(identity,)], (identity.form,), gradient, weights)
        if holding is not None:
            kept.extend(holding[0])
            floor = max(floor, holding[1])
    return tuple(kept), floor


def _holding(
    block: Block, index: int, kind: Kind, gradient: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> tuple[tuple[Identity, ...], float] | None:
    """The group of identities with most equations that hold in one block, and the relative rounding that they leave."""
    dim = block.attention_output.in_features // block.heads
    forms = _forms(dim) if kind == "query-key" else (Form(name="any"),)
    return _first_that_holds(list(_candidates(block, index, kind)), forms, gradient, weights)


def _first_that_holds(
    candidates: Sequence[tuple[Identity, ...]],
    forms: Iterable[Form],
    gradient: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> tuple[tuple[Identity, ...], float] | None:
    groups = [group for group in candidates if all(identity.names() <= gradient.keys() for identity in group)]
    parts = [[(identity.parts(gradient, weights), identity.size(gradient)) for identity in group] for group in groups]
    for form in forms:
        for group, measured in zip(groups, parts, strict=True):
            if any(size == 0.0 for _, size in measured):
                continue
            worst = max(float(form.standardize(*part).abs().max()) / size for part, size in measured)
            if worst < _HOLDS:
                return tuple(dataclasses.replace(identity, form=form) for identity in group), worst
    return None


def _probe_gradient(subject: Subject) -> Mapping[str, Tensor]:
    """An honest gradient of made-up records: random tokens or pixels, random labels."""
    rng = derive(0, "gauge probe")
    records = _PROBE_RECORDS
    if subject.modality == "image":
        inputs = torch.rand(records, *subject.pixel_shape, generator=rng)
        mask = torch.ones(records, dtype=torch.bool)
    else:
        longest = subject.anatomy.max_positions or _PROBE_LENGTH
        shape = (records, min(_PROBE_LENGTH, longest))
        inputs = torch.randint(subject.anatomy.vocab_size, shape, generator=rng)
        mask = torch.ones_like(inputs, dtype=torch.bool)
    labels = subject.loss.random_labels(inputs, subject.classes, rng)
    if subject.loss.hides_tokens:
        labels[:, ::3] = IGNORED
    batch = Batch(inputs=inputs, mask=mask, labels=labels)
    return ClientTrainer(subject=subject, training=LocalTraining()).update(batch, rng)


_Layout = Callable[[Block, int], dict[str, list[Slice]]]


def _candidates(block: Block, index: int, kind: Kind) -> Iterator[tuple[Identity, ...]]:
    """One group per way in which queries, keys and values may lie in the maps: an identity per key and value head."""
    for layout in _LAYOUTS:
        if all(_fits(part) for part in layout(block, 0).values()):
            yield tuple(_identity(block, index, head, kind, layout) for head in range(block.kv_heads))


def _identity(block: Block, index: int, head: int, kind: Kind, layout: _Layout) -> Identity:
    parts = layout(block, head)
    if kind == "query-key":
        left, right = parts["query"], parts["key"]
    else:
        dim = block.attention_output.in_features // block.heads
        left = parts["value"]
        right = [
            Slice(map=block.attention_output, start=h * dim, stop=(h + 1) * dim, columns=True)
            for h in _queries_of(block, head)
        ]
    return Identity(kind=kind, block=index, head=head, form=Form(name="any"), left=tuple(left), right=tuple(right))


def _queries_of(block: Block, head: int) -> range:
    group = block.heads // block.kv_heads
    return range(head * group, (head + 1) * group)


def _separate(block: Block, head: int) -> dict[str, list[Slice]]:
    """Three maps, heads in order."""
    if len(block.attention_inputs) != 3:
        return {"none": []}
    dim = block.attention_output.in_features // block.heads
    q, k, v = block.attention_inputs
    return {
        "query": [Slice(map=q, start=h * dim, stop=(h + 1) * dim) for h in _queries_of(block, head)],
        "key": [Slice(map=k, start=head * dim, stop=(head + 1) * dim)],
        "value": [Slice(map=v, start=head * dim, stop=(head + 1) * dim)],
    }


def _stacked(block: Block, head: int) -> dict[str, list[Slice]]:
    """One map: all queries, then all keys, then all values."""
    if len(block.attention_inputs) != 1:
        return {"none": []}
    dim = block.attention_output.in_features // block.heads
    (fused,) = block.attention_inputs
    keys, values = block.heads * dim, (block.heads + block.kv_heads) * dim
    return {
        "query": [Slice(map=fused, start=h * dim, stop=(h + 1) * dim) for h in _queries_of(block, head)],
        "key": [Slice(map=fused, start=keys + head * dim, stop=keys + (head + 1) * dim)],
        "value": [Slice(map=fused, start=values + head * dim, stop=values + (head + 1) * dim)],
    }


def _interleaved(block: Block, head: int) -> dict[str, list[Slice]]:
    """One map: for every key and value head its queries, its key, its value."""
    if len(block.attention_inputs) != 1:
        return {"none": []}
    dim = block.attention_output.in_features // block.heads
    (fused,) = block.attention_inputs
    group = block.heads // block.kv_heads
    base = head * (group + 2) * dim
    rows = [Slice(map=fused, start=base + i * dim, stop=base + (i + 1) * dim) for i in range(group + 2)]
    return {"query": rows[:group], "key": [rows[group]], "value": [rows[group + 1]]}


_LAYOUTS: tuple[_Layout, ...] = (_separate, _stacked, _interleaved)


def _fits(parts: Sequence[Slice]) -> bool:
    return bool(parts) and all(part.stop <= part.map.out_features for part in parts)


def _forms(dim: int) -> Iterator[Form]:
    """What A may be, most equations first: anything; or what commutes with rotations of the first entries."""
    yield Form(name="any")
    for rotated in range(2, dim + 1, 2):
        half, neighbors = rotated // 2, range(0, rotated, 2)
        yield Form(
            name=f"rotation of {rotated}, halves paired",
            planes=tuple((i, i + half) for i in range(half)),
            rotated=rotated,
        )
        if rotated > 2:
            yield Form(
                name=f"rotation of {rotated}, neighbors paired",
                planes=tuple((i, i + 1) for i in neighbors),
                rotated=rotated,
            )
