"""K candidate gradients in a model of P parameters are K·P numbers, too many to hold; their K² inner products are
what every Gaussian bound needs. Each weight gradient is a sum of outer products over tokens, so

    <Σ_t l_t r_tᵀ, Σ_u l'_u r'_uᵀ> = Σ_{t,u} (l_t · l'_u)(r_t · r'_u)

and no gradient of a weight is formed for more than a slice of rows at a time. Must not know attacks, defenses or noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import ModelError
from gradleak.mechanics.client.factored import factor_gradients
from gradleak.mechanics.client.outer_products import FactoredMatrix, Part, RowSum
from gradleak.models import Subject

CHUNK = 16
"""Candidates in one forward and backward pass."""
MEMORY_BYTES = 1 << 30
"""Factors held at a time; more names than fit are taken in several rounds of passes."""
_CELLS = 1 << 24
"""Entries of the largest intermediate matrix."""

Progress = Callable[[float, str], None]


def gram_matrix(
    subject: Subject,
    candidates: Batch,
    names: Sequence[str],
    *,
    chunk: int = CHUNK,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress = lambda fraction, message: None,
) -> Float[Tensor, "candidates candidates"]:
    """Inner products of the gradients that each record of ``candidates`` would cause if it were the whole batch.

    Args:
        subject: the model; its loss is the one that is differentiated.
        candidates: one candidate per record; rows may be padded.
        names: the shared parameters.
        chunk: candidates per pass, at least 1.
        memory_bytes: for the factors; a parameter that exceeds it alone is still done, in a round of its own.
        progress: told the fraction done.

    Returns:
        ``[K K]`` in float64. The factors have the model's own format; products and sums are taken in float64, because the
        distance of two nearly equal gradients is a small difference of large inner products.

    Raises:
        ModelError: if a parameter sits in a kind of module whose gradient has no factors here.

    Guarantees:
        Memory grows with K·tokens·width and K², never with K·P.
    """
    count = candidates.size
    total = torch.zeros(count, count, dtype=torch.float64)
    rounds = list(_rounds(subject, candidates, names, chunk=chunk, memory_bytes=memory_bytes))
    for place, group in enumerate(rounds):
        steps = len(range(0, count, chunk))

        def tell(done: int, place: int = place, steps: int = steps) -> None:
            progress((place + 0.5 * done / steps) / len(rounds), "gradients of the candidates")

        stacked = CandidateGradients.of(subject, candidates, group, chunk=chunk, tell=tell)
        for number, parts in enumerate(stacked.parts.values(), start=1):
            total += _self_products(parts, count)
            progress((place + 0.5 + 0.5 * number / len(stacked.parts)) / len(rounds), "inner products")
    return (total + total.T) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateGradients:
    """The gradients of K candidates in factors.

    Attributes:
        parts: name → the summands of that parameter's gradient, each with a leading axis of K.
        count: K.
    """

    parts: Mapping[str, tuple[Part, ...]]
    count: int

    @staticmethod
    def of(
        subject: Subject,
        candidates: Batch,
        names: Sequence[str],
        *,
        chunk: int = CHUNK,
        tell: Callable[[int], None] = lambda done: None,
    ) -> CandidateGradients:
        """Arguments and errors as ``gram_matrix``."""
        chunks: list[Mapping[str, tuple[Part, ...]]] = []
        for start in range(0, candidates.size, chunk):
            chunks.append(_factors(subject, candidates, names, slice(start, start + chunk)))
            tell(len(chunks))
        parts = {name: _stack([factors[name] for factors in chunks]) for name in chunks[0]}
        return CandidateGradients(parts=parts, count=candidates.size)

    def inner(self, update: Mapping[str, Tensor]) -> Float[Tensor, " candidates"]:
        """Inner products of one dense update with every candidate, in float64."""
        total = torch.zeros(self.count, dtype=torch.float64)
        for name, parts in self.parts.items():
            for part in parts:
                products = (
                    (part.flatten(1) @ update[name].flatten()) if isinstance(part, Tensor) else part.inner(update[name])
                )
                total += products.double()
        return total


def _rounds(
    subject: Subject, candidates: Batch, names: Sequence[str], *, chunk: int, memory_bytes: int
) -> Iterator[tuple[str, ...]]:
    """The names in groups whose factors fit the memory, by the sizes that the first pass shows."""
    first = _factors(subject, candidates, names, slice(0, 1))
    group: list[str] = []
    used = 0
    for name, parts in first.items():
        size = sum(_bytes(part) for part in parts) * candidates.size
        if group and used + size > memory_bytes:
            yield tuple(group)
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield tuple(group)


def _factors(subject: Subject, candidates: Batch, names: Sequence[str], rows: slice) -> Mapping[str, tuple[Part, ...]]:
    inputs, mask = candidates.inputs[rows], candidates.mask[rows]
    targets = subject.loss.targets(candidates.labels[rows], subject.classes)
    with torch.enable_grad():
        factors = factor_gradients(subject, tuple(names), inputs, targets, mask, restarts=inputs.shape[0])
    if factors is None:
        raise ModelError(
            f"{subject.name} keeps parameters in a kind of module whose gradient gradleak cannot factor, so the candidates' "
            "inner products would take their whole gradients. Freeze those parameters, or use another model."
        )
    return {name: tuple(map(_detached, parts)) for name, parts in factors.items()}


def _detached(part: Part) -> Part:
    if isinstance(part, FactoredMatrix):
        return FactoredMatrix(left=part.left.detach(), right=part.right.detach())
    if isinstance(part, RowSum):
        return RowSum(index=part.index, rows=part.rows.detach(), height=part.height)
    return part.detach()


def _bytes(part: Part) -> int:
    tensors = (
        (part.left, part.right)
        if isinstance(part, FactoredMatrix)
        else (part.rows,)
        if isinstance(part, RowSum)
        else (part,)
    )
    return sum(tensor.nbytes for tensor in tensors)


def _stack(chunks: Sequence[tuple[Part, ...]]) -> tuple[Part, ...]:
    return tuple(_concatenate(parts) for parts in zip(*chunks, strict=True))


def _concatenate(parts: Sequence[Part]) -> Part:
    outer = [part for part in parts if isinstance(part, FactoredMatrix)]
    rows = [part for part in parts if isinstance(part, RowSum)]
    dense = [part for part in parts if isinstance(part, Tensor)]
    if outer:
        return FactoredMatrix(left=torch.cat([p.left for p in outer]), right=torch.cat([p.right for p in outer]))
    if rows:
        index, values = torch.cat([p.index for p in rows]), torch.cat([p.rows for p in rows])
        return RowSum(index=index, rows=values, height=rows[0].height)
    return torch.cat(dense)


def _self_products(parts: tuple[Part, ...], count: int) -> Float[Tensor, "candidates candidates"]:
    """The Gram matrix of one parameter: of every part with itself, and of every pair of parts twice."""
    total = torch.zeros(count, count, dtype=torch.float64)
    for place, part in enumerate(parts):
        total += _products(part, part)
        for other in parts[place + 1 :]:
            cross = _products(part, other)
            total += cross + cross.T
    return total


def _products(part: Part, other: Part) -> Float[Tensor, "candidates candidates"]:
    """Entry (j, k) is the inner product of candidate j of ``part`` with candidate k of ``other``, in float64."""
    if isinstance(part, Tensor) and isinstance(other, Tensor):
        return part.flatten(1).double() @ other.flatten(1).double().T
    if isinstance(part, Tensor) or isinstance(other, Tensor):
        return _products(_dense(part), _dense(other))
    if part is other and isinstance(part, FactoredMatrix) and _slices_are_cheaper(part):
        return _sliced(part)
    return _by_tokens(part, other)


def _dense(part: Part) -> Tensor:
    return part if isinstance(part, Tensor) else part.dense()


def _slices_are_cheaper(part: FactoredMatrix) -> bool:
    tokens, rows, columns = part.left.shape[1], part.left.shape[2], part.right.shape[2]
    return tokens * tokens * (rows + columns) > rows * columns


def _sliced(part: FactoredMatrix) -> Float[Tensor, "candidates candidates"]:
    """Forms a slice of rows of every candidate's gradient at a time."""
    count, _, height = part.left.shape
    step = max(1, _CELLS // (count * part.right.shape[2]))
    total = torch.zeros(count, count, dtype=torch.float64)
    for start in range(0, height, step):
        rows = part.left[:, :, start : start + step].transpose(1, 2)
        piece = (rows.double() @ part.right.double()).flatten(1)
        total += piece @ piece.T
    return total


def _by_tokens(part: FactoredMatrix | RowSum, other: FactoredMatrix | RowSum) -> Float[Tensor, "candidates candidates"]:
    """Σ_{t,u} (l_t · l'_u)(r_t · r'_u), a block of candidates against a block of candidates at a time."""
    tokens, width = max(_tokens(part), _tokens(other)), max(_width(part), _width(other))
    step = max(1, min(int(_CELLS**0.5), _CELLS // width) // tokens)
    total = torch.empty(_count(part), _count(other), dtype=torch.float64)
    for i in range(0, _count(part), step):
        # The matrix is symmetric when a part meets itself: what lies left of the diagonal is known.
        for j in range(i if part is other else 0, _count(other), step):
            sums = _block(_slice(part, slice(i, i + step)), _slice(other, slice(j, j + step)))
            total[i : i + step, j : j + step] = sums
            if part is other:
                total[j : j + step, i : i + step] = sums.T
    return total


def _block(part: FactoredMatrix | RowSum, other: FactoredMatrix | RowSum) -> Float[Tensor, "candidates candidates"]:
    products = _left(part, other) * _right(part, other)
    return products.view(_count(part), _tokens(part), _count(other), _tokens(other)).sum((1, 3))


def _width(part: FactoredMatrix | RowSum) -> int:
    return part.left.shape[2] + part.right.shape[2] if isinstance(part, FactoredMatrix) else part.rows.shape[2]


def _count(part: FactoredMatrix | RowSum) -> int:
    return (part.left if isinstance(part, FactoredMatrix) else part.rows).shape[0]


def _tokens(part: FactoredMatrix | RowSum) -> int:
    return (part.left if isinstance(part, FactoredMatrix) else part.rows).shape[1]


def _slice(part: FactoredMatrix | RowSum, rows: slice) -> FactoredMatrix | RowSum:
    if isinstance(part, FactoredMatrix):
        return FactoredMatrix(left=part.left[rows], right=part.right[rows])
    return RowSum(index=part.index[rows], rows=part.rows[rows], height=part.height)


def _left(part: FactoredMatrix | RowSum, other: FactoredMatrix | RowSum) -> Tensor:
    """Products of the left factors of every pair of tokens; a table's left factors are unit vectors."""
    if isinstance(part, RowSum) and isinstance(other, RowSum):
        return (part.index.reshape(-1, 1) == other.index.reshape(1, -1)).double()
    if isinstance(part, FactoredMatrix) and isinstance(other, FactoredMatrix):
        return part.left.flatten(0, 1).double() @ other.left.flatten(0, 1).double().T
    if isinstance(part, FactoredMatrix) and isinstance(other, RowSum):
        return part.left.flatten(0, 1)[:, other.index.flatten()].double()
    return _left(other, part).T


def _right(part: FactoredMatrix | RowSum, other: FactoredMatrix | RowSum) -> Tensor:
    right = [factor.right if isinstance(factor, FactoredMatrix) else factor.rows for factor in (part, other)]
    return right[0].flatten(0, 1).double() @ right[1].flatten(0, 1).double().T
