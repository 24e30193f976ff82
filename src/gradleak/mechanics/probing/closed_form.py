"""Where a position enters the first attention's input as a summand, z = gain ∘ (E_v + P_p) / σ(v, p) + offset, its projections
are sums over the tokens and over the positions too. Queries, keys and values of V·P pairs then cost V + P projections and not
V·P. The law is read off the module and checked on it. Must not know gradients, spaces or how sequences are searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gradleak.mechanics.probing.first_input import FirstInput, read_first_input
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import Subject

Projected = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, ``[rows seq heads dim]`` each."""

_TOLERANCE = 1e-5
"""A hundred roundings: the law holds to rounding, or not at all."""
_WORTH = 2
"""Pairs per token and position from which the detour pays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """What divides an input: s² = slope · σ² + small, the constant under the root of a normalization."""

    slope: float
    small: float

    @staticmethod
    def of(law: FirstInput, row: Int64[Tensor, " seq"], z: Float[Tensor, "seq features"]) -> _Scale | None:
        if not law.norm.normalized:
            return _Scale(slope=0.0, small=1.0)
        body = law.norm.center(law.before_norm(row.unsqueeze(0))[0].double())
        plain, normalized = law.norm.gain * body, z.double() - law.norm.offset
        squares = (plain.square().sum(1) / (plain * normalized).sum(1)).square()
        variances = body.square().mean(dim=1)
        spread = variances - variances.mean()
        if not bool(spread.any()):
            return None
        slope = float((spread * squares).sum() / spread.square().sum())
        return _Scale(slope=slope, small=float((squares - slope * variances).mean()))

    def at(self, token: Float[Tensor, "tokens features"], place: Float[Tensor, "positions features"]) -> Tensor:
        """s of every pair, from centered parts."""
        sums = token.square().sum(1, keepdim=True) + place.square().sum(1) + 2 * token @ place.T
        return (self.slope * sums.clamp(min=0) / token.shape[1] + self.small).sqrt()


def projections_by_law(
    subject: Subject,
    paths: Sequence[str],
    rows: Int64[Tensor, "rows seq"],
    project: Callable[[Int64[Tensor, "rows seq"]], Projected | None],
    parameters: Mapping[str, Tensor] | None,
) -> Projected | None:
    """What ``project`` makes of all rows, from as many projections as there are tokens and positions.

    Args:
        paths: all modules that read the first attention's input.
        project: runs the module on rows of tokens.

    Returns:
        None where it would save nothing, or where the module does otherwise (checked on the first and the last row).
    """
    tokens, numbers = rows.unique(return_inverse=True)
    if _WORTH * (len(tokens) + rows.shape[1]) > rows.numel():
        return None
    law = read_first_input(subject, paths[0], positions=rows.shape[1], parameters=parameters)
    if law is None:
        return None
    z = linear_inputs(subject, paths[:1], rows[:1], parameters=parameters)[paths[0]][0]
    scale = _Scale.of(law, rows[0], z)
    token, place = law.norm.center(law.scale * law.table[tokens]), law.norm.center(law.positions)
    given = torch.cat((law.norm.gain * token, law.norm.gain * place, law.norm.offset.unsqueeze(0), place[:1] * 0.0))
    with feeding(subject.module, paths, given):
        parts = project(tokens.new_zeros(len(given), 1))
    seen = project(rows[[0, -1]])
    if scale is None or parts is None or seen is None:
        return None
    divisor = scale.at(token.double(), place.double()).to(z.dtype)
    divisor = divisor[numbers, torch.arange(rows.shape[1], device=rows.device)][:, :, None, None]
    predicted = tuple(_summed(part[:, 0], numbers, divisor) for part in parts)
    alike = all(
        bool((expected[[0, -1]] - other).norm() <= _TOLERANCE * other.norm())
        for expected, other in zip(predicted, seen, strict=True)
    )
    return (predicted[0], predicted[1], predicted[2]) if alike else None


def _summed(projected: Tensor, numbers: Int64[Tensor, "rows seq"], divisor: Tensor) -> Tensor:
    """(of token + of position) / divisor + of offset, from projections of all tokens, all positions, the offset, and nothing."""
    plain = projected[:-1] - projected[-1]
    positions = numbers.shape[1]
    of_token, of_place, of_offset = plain.split((len(plain) - positions - 1, positions, 1))
    return of_token[numbers].add_(of_place).div_(divisor).add_(of_offset + projected[-1])


@contextmanager
def feeding(module: nn.Module, paths: Sequence[str], vectors: Float[Tensor, "rows features"]) -> Iterator[None]:
    """Inside, the modules at ``paths`` read ``vectors`` in the place of their inputs: as many at a time as they are handed."""

    def feeder() -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        left = [vectors]

        def feed(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            count = args[0].numel() // vectors.shape[1]
            given, left[0] = left[0][:count], left[0][count:]
            return given.view(args[0].shape), *args[1:]

        return feed

    handles = [module.get_submodule(path).register_forward_pre_hook(feeder()) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
