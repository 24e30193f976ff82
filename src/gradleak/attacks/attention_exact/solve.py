"""With known real-valued targets the data of a bare attention layer follow from its gradient almost in closed form.
The reference for what can be recovered at all, and an oracle for attacks that search. Must not know models.

    Y = Σ_h S_h X V_h O_h,   L = ½ ‖Y − B‖²,   M = [S_1 X V_1 | ... | S_H X V_H]

**Stage 1**, linear algebra. G_O = Mᵀ(M O − B), hence with B̃ = B O⁻¹:  G̃ = G_O O⁻¹ = MᵀM − MᵀB̃. In a basis whose last
d − n vectors span the null space of B̃ (B̃ Q = [R 0], M Q = [M₁ M₂]):

    G̃₁₂ − G̃₂₁ᵀ = RᵀM₂   gives M₂,      G̃₁₂ = M₁ᵀM₂   gives M₁ if M₂ has rank n: iff d ≥ 2n.

**Stage 2**, n × n unknowns. The columns of G_V span the tokens: X = Y Uᵀ. Levenberg–Marquardt on
S_h(Y) Y UᵀV_h = M_h and the gradients of queries and keys, from 1.5 times the mixed tokens, then from random starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import NotApplicableError, UsageError
from gradleak.mechanics.attention.softmax import Heads, HeadsGradient, Point
from gradleak.mechanics.derivatives.least_squares import DenseLinearized, LevenbergMarquardt

_BATCH = 8
"""Random starts that are searched together."""

_MATCHED = 1e-20
"""Value of stage 2, in squared units of what is matched, at which a start has reached the arithmetic floor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
    """What the staged attack found.

    Attributes:
        inputs: X at the best start.
        certificate: ‖g(X) − g*‖ / ‖g*‖ over all four gradients; exact means at the arithmetic floor.
        starts: how many starts were used.
    """

    inputs: Float[Tensor, "seq model"]
    certificate: float
    starts: int

    @property
    def exact(self) -> bool:
        """The gradient is reproduced to 1e-8. Below n = 2d it proves recovery; see ``docs/theory/recovery.md``."""
        return self.certificate < 1e-8


def mixed_values(
    heads: Heads, output_gradient: Float[Tensor, "heads head_dim out"], targets: Float[Tensor, "seq out"]
) -> Float[Tensor, "seq heads*head_dim"]:
    """Stage 1: M, exactly, from the gradient of the output map and the targets alone.

    Raises:
        NotApplicableError: if d < 2n (a family with (2n − d)(2n − d + 1)/2 free parameters fits), or B or O is singular.
        UsageError: if shapes do not fit.
    """
    output = heads.output.flatten(0, 1)
    seq, model = targets.shape
    if output.shape[0] != output.shape[1] or output.shape[1] != model or output_gradient.shape != heads.output.shape:
        raise UsageError(
            f"The staged attack needs a square output map and its gradient, got output {tuple(output.shape)}, gradient "
            f"{tuple(output_gradient.shape)} and targets {tuple(targets.shape)}."
        )
    if model < 2 * seq:
        free = (2 * seq - model) * (2 * seq - model + 1) // 2
        raise NotApplicableError(
            f"Not identifiable by stage 1: {seq} tokens need a width of at least {2 * seq}, this layer has {model}; "
            f"a family with {free} free parameters has the same gradient of the output map."
        )
    singular = torch.linalg.svdvals(output)
    if float(singular[-1]) <= 1e-12 * float(singular[0]):
        raise NotApplicableError("The output map is singular, so the targets cannot be carried to the values' side.")
    carried = torch.linalg.solve(output, targets, left=False)
    left, sizes, right = torch.linalg.svd(carried, full_matrices=True)
    if float(sizes[-1]) <= 1e-12 * float(sizes[0]):
        raise NotApplicableError("The targets are linearly dependent; stage 1 needs as many directions as tokens.")
    gradient = torch.linalg.solve(output, output_gradient.flatten(0, 1), left=False)
    rotated = right @ gradient @ right.mT
    root = left * sizes
    upper, lower = rotated[:seq, seq:], rotated[seq:, :seq]
    second = torch.linalg.solve(root.mT, upper - lower.mT)
    first = torch.linalg.lstsq(second.mT, upper.mT).solution
    return torch.cat((first, second), 1) @ right


def recover(
    heads: Heads,
    gradient: HeadsGradient,
    targets: Float[Tensor, "seq out"],
    *,
    rng: torch.Generator,
    starts: int = 64,
    iterations: int = 200,
    matched: float = _MATCHED,
    spent: Callable[[], bool] = lambda: False,
) -> Recovered:
    """The staged attack: X from the gradient of one sequence with known targets.

    Args:
        starts: most starts of stage 2; the first is 1.5 times the mixed tokens, the others are random.
        iterations: of Levenberg–Marquardt per start.
        matched: value of stage 2 at which a start has arrived; above the default for a gradient in a short format, whose
            rounding stage 1 amplifies.
        spent: asked at every iteration whether to stop with the best so far.

    Guarantees:
        Stage 1 is exact up to rounding, amplified by the condition of R and M₂. Stage 2 is a search: what it returns is
        certified by recomputing the gradient, not assumed.

    Source: the reconstruction notes of this project; stage 1 is in a simpler, equivalent form here.

    Raises:
        NotApplicableError: as ``mixed_values``, or with a causal mask or several layers at once.
        UsageError: for ``starts`` or ``iterations`` below 1, or shapes that do not fit.
    """
    if starts < 1 or iterations < 1:
        raise UsageError(f"starts and iterations must be at least 1, got {starts} and {iterations}.")
    if heads.causal or heads.query.ndim != 3:
        raise NotApplicableError("The staged attack is written for one layer without a causal mask.")
    mixed = mixed_values(heads, gradient.output, targets)
    problem = _Reduced.of(heads, gradient, targets, mixed)
    first = 1.5 * problem.mixed_tokens(mixed)
    best: tuple[float, Tensor] | None = None
    used = 0
    while used < starts:
        size = 1 if used == 0 else min(_BATCH, starts - used)
        drawn = first.unsqueeze(0) if used == 0 else torch.randn(size, *first.shape, dtype=first.dtype, generator=rng)
        points, values = LevenbergMarquardt(iterations=iterations).run(
            problem, drawn.flatten(1), lambda _i, value, _x: bool((value < matched).any()) or spent()
        )
        used += size
        winner = int(values.argmin())
        if best is None or float(values[winner]) < best[0]:
            best = float(values[winner]), points[winner]
        if best[0] < matched or spent():
            break
    assert best is not None
    inputs = best[1].view(first.shape) @ problem.basis
    again = heads.split(heads.layer().at(inputs, targets).gradient()).flat()
    return Recovered(
        inputs=inputs,
        certificate=float((again - gradient.flat()).norm() / gradient.flat().norm()),
        starts=used,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reduced:
    """Stage 2 for starts Y ``[starts n n]``: the layer in the basis of the tokens.

    Attributes:
        basis: Uᵀ, rows that span the tokens. heads: the layer in that basis. goal: what has to come out, each part in
            units of its norm; units: those norms.
    """

    heads: Heads
    basis: Float[Tensor, "seq model"]
    whole_value: Tensor
    targets: Tensor
    goal: Tensor
    units: tuple[float, float]

    @staticmethod
    def of(heads: Heads, gradient: HeadsGradient, targets: Tensor, mixed: Tensor) -> _Reduced:
        seq = targets.shape[0]
        stacked = torch.cat(list(gradient.value), 1)
        basis = torch.linalg.svd(stacked)[0][:, :seq].mT
        narrow = Heads(
            query=basis @ heads.query,
            key=basis @ heads.key,
            value=basis @ heads.value,
            output=heads.output,
            scale=heads.scale,
        )
        scores = torch.cat(((basis @ gradient.query).flatten(), (basis @ gradient.key).flatten()))
        units = float(mixed.norm()), max(float(scores.norm()), 1e-300)
        return _Reduced(
            heads=narrow,
            basis=basis,
            whole_value=torch.cat(list(heads.value), 1),
            targets=targets,
            goal=torch.cat((mixed.flatten() / units[0], scores / units[1])),
            units=units,
        )

    def mixed_tokens(self, mixed: Tensor) -> Tensor:
        """About S X in the basis: M [V_1 | ... | V_H]⁻¹, exact if all heads attend alike."""
        return torch.linalg.lstsq(self.whole_value.mT, mixed.mT).solution.mT @ self.basis.mT

    def at(self, x: Float[Tensor, "starts unknowns"]) -> DenseLinearized:
        y = x.unflatten(1, (self.seq, self.seq))
        point = self.heads.layer().at(y, self.targets)
        basis = torch.eye(self.seq**2, dtype=x.dtype, device=x.device).unflatten(1, (1, self.seq, self.seq))
        moved, value = basis.unsqueeze(-3), self.heads.value
        mixed = point.weights_jvp(basis) @ (y.unsqueeze(-3) @ value) + point.weights @ (moved @ value)
        columns = self._stack(mixed, self.heads.split(point.jvp(basis)))
        return DenseLinearized.of(self._gap(point), columns.movedim(0, -1))

    def value(self, x: Float[Tensor, "starts unknowns"]) -> Float[Tensor, " starts"]:
        point = self.heads.layer().at(x.unflatten(1, (self.seq, self.seq)), self.targets)
        return 0.5 * self._gap(point).square().sum(-1)

    @property
    def seq(self) -> int:
        return self.targets.shape[0]

    def _gap(self, point: Point) -> Tensor:
        mixed = point.weights @ (point.inputs.unsqueeze(-3) @ self.heads.value)
        return self._stack(mixed, self.heads.split(point.gradient())) - self.goal

    def _stack(self, mixed: Float[Tensor, "*batch heads seq head_dim"], split: HeadsGradient) -> Tensor:
        scores = torch.cat((split.query.flatten(-3), split.key.flatten(-3)), -1)
        return torch.cat((mixed.transpose(-3, -2).flatten(-3) / self.units[0], scores / self.units[1]), -1)


def single_head(scores: Float[Tensor, "model model"], values: Float[Tensor, "model out"], scale: float) -> Heads:
    """One head given by W and V alone, as four factors: Q = W, K = 1, O = 1."""
    if scores.shape[0] != scores.shape[1] or values.shape[0] != scores.shape[0]:
        raise UsageError(
            f"One head needs W [model, model] and V [model, out], got {tuple(scores.shape)}, {tuple(values.shape)}."
        )
    like = {"dtype": scores.dtype, "device": scores.device}
    return Heads(
        query=scores.unsqueeze(0),
        key=torch.eye(scores.shape[0], **like).unsqueeze(0),
        value=values.unsqueeze(0),
        output=torch.eye(values.shape[1], **like).unsqueeze(0),
        scale=scale,
    )
