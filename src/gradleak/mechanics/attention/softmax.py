"""For bare softmax attention with squared loss everything that theory asks about a shared gradient has a closed
form: the gradient, its derivative in the private data, and the adjoint of that. No autograd, hence cheap and exact, and
an oracle for whatever is computed by autograd elsewhere. Must not know models, attacks or noise.

    Y = Σ_h S_h X U_h,   S_h = row-softmax(s · X W_h Xᵀ),   L = ½ ‖Y − B‖²

W_h (model × model) scores and U_h (model × out) values are what the two products of a real head amount to:
W_h = Q_h K_hᵀ, U_h = V_h O_h. Gradients of Q, K, V, O are linear images of those of W and U (``Heads``), so one set of
formulas serves one head, many heads and every split into factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import UsageError
from gradleak.models import Subject
from gradleak.models.bare import BareAttention


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient:
    """dL/dW_h and dL/dU_h, or a direction in their space."""

    scores: Float[Tensor, "*batch heads model model"]
    values: Float[Tensor, "*batch heads model out"]

    def flat(self) -> Float[Tensor, "*batch entries"]:
        return torch.cat((self.scores.flatten(-3), self.values.flatten(-3)), -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadsGradient:
    """dL/dQ_h, dL/dK_h, dL/dV_h, dL/dO_h, or a direction in their space."""

    query: Float[Tensor, "*batch heads model head_dim"]
    key: Float[Tensor, "*batch heads model head_dim"]
    value: Float[Tensor, "*batch heads model head_dim"]
    output: Float[Tensor, "*batch heads head_dim out"]

    def flat(self) -> Float[Tensor, "*batch entries"]:
        return torch.cat([matrix.flatten(-3) for matrix in (self.query, self.key, self.value, self.output)], -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """The layer. Leading axes of the weights stand for independent layers and broadcast against those of the data.

    Args:
        scale: s, usually 1/√head_dim.
        causal: position i attends to positions up to i only.

    Raises:
        UsageError: if the shapes do not fit each other.
    """

    scores: Float[Tensor, "*batch heads model model"]
    values: Float[Tensor, "*batch heads model out"]
    scale: float
    causal: bool = False

    def __post_init__(self) -> None:
        w, u = self.scores.shape, self.values.shape
        if len(w) < 3 or len(u) < 3 or w[-1] != w[-2] or u[-3:-1] != w[-3:-1]:
            raise UsageError(
                f"Attention needs scores [heads, model, model] and values [heads, model, out], got {tuple(w)} and {tuple(u)}."
            )

    @property
    def model(self) -> int:
        return self.scores.shape[-1]

    def weights_of(self, inputs: Float[Tensor, "*batch seq model"]) -> Float[Tensor, "*batch heads seq seq"]:
        """S_h, the attention weights."""
        _check_inputs(self, inputs)
        x = inputs.unsqueeze(-3)
        logits = self.scale * (x @ self.scores @ x.mT)
        if self.causal:
            later = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).triu(1)
            logits = logits.masked_fill(later, -torch.inf)
        return torch.softmax(logits, -1)

    def output(self, inputs: Float[Tensor, "*batch seq model"]) -> Float[Tensor, "*batch seq out"]:
        """Y."""
        return (self.weights_of(inputs) @ (inputs.unsqueeze(-3) @ self.values)).sum(-3)

    def at(self, inputs: Float[Tensor, "*batch seq model"], targets: Float[Tensor, "*batch seq out"]) -> Point:
        """Everything that the closed forms share, at data (X, B).

        Raises:
            UsageError: if the data do not fit the layer.
        """
        weights = self.weights_of(inputs)
        mixed = inputs.unsqueeze(-3) @ self.values
        output = (weights @ mixed).sum(-3)
        if targets.shape[-2:] != output.shape[-2:]:
            raise UsageError(
                f"The targets must have shape [..., {output.shape[-2]}, {output.shape[-1]}], got {tuple(targets.shape)}."
            )
        error = output - targets
        pull = error.unsqueeze(-3) @ mixed.mT
        mean = (weights * pull).sum(-1, keepdim=True)
        return Point(layer=self, inputs=inputs, weights=weights, mixed=mixed, error=error, pull=pull, mean=mean)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Attention with squared loss at one (X, B): loss, gradient, its Jacobian in the data and the adjoint.

    Attributes:
        weights: S_h.
        mixed: H_h = X U_h.
        error: C = Y − B.
        pull: C H_hᵀ, how the loss moves with each attention weight.
        mean: row means of ``pull`` under S_h.

    Guarantees:
        Agrees with autograd to rounding (``tests/mechanics/attention/test_softmax.py``); ⟨J u, v⟩ = ⟨u, Jᵀ v⟩ exactly.

    Source: the gradient in the weights is that of arXiv 2309.07418 (vectors p_j as rows; its text calls them columns, and
        as columns the result is wrong). Jacobian and adjoint are derived here.
    """

    layer: Attention
    inputs: Float[Tensor, "*batch seq model"]
    weights: Float[Tensor, "*batch heads seq seq"]
    mixed: Float[Tensor, "*batch heads seq out"]
    error: Float[Tensor, "*batch seq out"]
    pull: Float[Tensor, "*batch heads seq seq"]
    mean: Float[Tensor, "*batch heads seq 1"]

    @property
    def loss(self) -> Float[Tensor, "*batch"]:
        return 0.5 * self.error.square().sum((-2, -1))

    @property
    def slope(self) -> Float[Tensor, "*batch heads seq seq"]:
        """P_h = dL/d(logits of head h); its rows sum to zero."""
        return self.weights * (self.pull - self.mean)

    def gradient(self) -> Gradient:
        """dL/dW_h = s Xᵀ P_h X and dL/dU_h = Xᵀ S_hᵀ C."""
        x = self.inputs.unsqueeze(-3)
        return Gradient(
            scores=self.layer.scale * (x.mT @ self.slope @ x),
            values=(self.weights @ x).mT @ self.error.unsqueeze(-3),
        )

    def input_gradient(self) -> Float[Tensor, "*batch seq model"]:
        """dL/dX = Σ_h s (P_h X W_hᵀ + P_hᵀ X W_h) + S_hᵀ C U_hᵀ."""
        x, p = self.inputs.unsqueeze(-3), self.slope
        through = self.layer.scale * (p @ x @ self.layer.scores.mT + p.mT @ x @ self.layer.scores)
        return (through + self.weights.mT @ self.error.unsqueeze(-3) @ self.layer.values.mT).sum(-3)

    def weights_jvp(self, inputs: Float[Tensor, "*batch seq model"]) -> Float[Tensor, "*batch heads seq seq"]:
        """The derivative of the attention weights S_h along dX."""
        x, dx = self.inputs.unsqueeze(-3), inputs.unsqueeze(-3)
        logits = self.layer.scale * (dx @ self.layer.scores @ x.mT + x @ self.layer.scores @ dx.mT)
        return self.weights * (logits - (self.weights * logits).sum(-1, keepdim=True))

    def output_jvp(self, inputs: Float[Tensor, "*batch seq model"]) -> Float[Tensor, "*batch seq out"]:
        """The derivative of Y along dX."""
        return (self.weights_jvp(inputs) @ self.mixed + self.weights @ (inputs.unsqueeze(-3) @ self.layer.values)).sum(
            -3
        )

    def jvp(
        self,
        inputs: Float[Tensor, "*batch seq model"],
        targets: Float[Tensor, "*batch seq out"] | None = None,
    ) -> Gradient:
        """The derivative of the gradient along (dX, dB); ``targets=None`` is dB = 0. Extra leading axes broadcast."""
        s, c = self.layer.scale, self.error.unsqueeze(-3)
        x, dx = self.inputs.unsqueeze(-3), inputs.unsqueeze(-3)
        dweights = self.weights_jvp(inputs)
        dmixed = dx @ self.layer.values
        derror = (dweights @ self.mixed + self.weights @ dmixed).sum(-3)
        if targets is not None:
            derror = derror - targets
        dc = derror.unsqueeze(-3)
        dpull = dc @ self.mixed.mT + c @ dmixed.mT
        dmean = (dweights * self.pull + self.weights * dpull).sum(-1, keepdim=True)
        p, dp = self.slope, dweights * (self.pull - self.mean) + self.weights * (dpull - dmean)
        half = p @ x
        return Gradient(
            scores=s * (dx.mT @ half + x.mT @ (dp @ x) + x.mT @ (p @ dx)),
            values=(self.weights @ dx + dweights @ x).mT @ c + (self.weights @ x).mT @ dc,
        )

    def vjp(self, direction: Gradient) -> tuple[Float[Tensor, "*batch seq model"], Float[Tensor, "*batch seq out"]]:
        """The adjoint: (Jᵀ R in X, Jᵀ R in B). Of R = g(X) − g*, the first is the slope of the inversion loss."""
        s, c, w, u = self.layer.scale, self.error.unsqueeze(-3), self.layer.scores, self.layer.values
        x, p = self.inputs.unsqueeze(-3), self.slope
        along = s * (x @ direction.scores @ x.mT)
        total = (along * self.weights).sum(-1, keepdim=True)
        to_pull = self.weights * (along - total)
        moved = x @ direction.values
        to_error = (self.weights @ moved + to_pull @ self.mixed).sum(-3)
        e = to_error.unsqueeze(-3)
        to_weights = along * (self.pull - self.mean) - total * self.pull + c @ moved.mT + e @ self.mixed.mT
        to_mixed = to_pull.mT @ c + self.weights.mT @ e
        to_logits = self.weights * (to_weights - (self.weights * to_weights).sum(-1, keepdim=True))
        to_inputs = (
            s * (p @ x @ direction.scores.mT + p.mT @ x @ direction.scores)
            + self.weights.mT @ c @ direction.values.mT
            + to_mixed @ u.mT
            + s * (to_logits @ x @ w.mT + to_logits.mT @ x @ w)
        )
        return to_inputs.sum(-3), -to_error


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """Attention as it is stored: Q_h, K_h, V_h (model × head_dim) and O_h (head_dim × out).

    Raises:
        UsageError: if the shapes do not fit each other.
    """

    query: Float[Tensor, "*batch heads model head_dim"]
    key: Float[Tensor, "*batch heads model head_dim"]
    value: Float[Tensor, "*batch heads model head_dim"]
    output: Float[Tensor, "*batch heads head_dim out"]
    scale: float
    causal: bool = False

    def __post_init__(self) -> None:
        shapes = [tuple(matrix.shape[-3:]) for matrix in (self.query, self.key, self.value, self.output)]
        if len({len(shape) for shape in shapes}) != 1 or len(shapes[0]) != 3 or len(set(shapes[:3])) != 1:
            raise UsageError(f"Queries, keys and values need one shape [heads, model, head_dim], got {shapes[:3]}.")
        if shapes[3][:2] != (shapes[0][0], shapes[0][2]):
            raise UsageError(
                f"The output needs [heads, head_dim, out] with heads and head_dim of {shapes[0]}, got {shapes[3]}."
            )

    def layer(self) -> Attention:
        """The same map with W_h = Q_h K_hᵀ and U_h = V_h O_h."""
        return Attention(
            scores=self.query @ self.key.mT, values=self.value @ self.output, scale=self.scale, causal=self.causal
        )

    def split(self, gradient: Gradient) -> HeadsGradient:
        """Gradients (or their tangents) of the factors: G_Q = G_W K, G_K = G_Wᵀ Q, G_V = G_U Oᵀ, G_O = Vᵀ G_U."""
        return HeadsGradient(
            query=gradient.scores @ self.key,
            key=gradient.scores.mT @ self.query,
            value=gradient.values @ self.output.mT,
            output=self.value.mT @ gradient.values,
        )

    def join(self, direction: HeadsGradient) -> Gradient:
        """The adjoint of ``split``."""
        return Gradient(
            scores=direction.query @ self.key.mT + self.query @ direction.key.mT,
            values=direction.value @ self.output + self.value @ direction.output,
        )


def data_jacobian(
    point: Point, heads: Heads | None = None, *, with_targets: bool = False
) -> Float[Tensor, "*batch entries unknowns"]:
    """J as a matrix: entries of the gradient (of W and U, or of Q, K, V, O) by entries of X (then of B).

    For small layers only: it costs one ``jvp`` per unknown, all in one batch.
    """
    *batch, seq, model = point.inputs.shape
    out = point.error.shape[-1]
    empty = (1,) * len(batch)
    like = {"dtype": point.inputs.dtype, "device": point.inputs.device}
    basis = torch.eye(seq * model, **like).reshape(-1, *empty, seq, model)
    columns = [point.jvp(basis)]
    if with_targets:
        targets = torch.eye(seq * out, **like).reshape(-1, *empty, seq, out)
        columns.append(point.jvp(torch.zeros(1, *empty, seq, model, **like), targets))
    flat = [(gradient if heads is None else heads.split(gradient)).flat() for gradient in columns]
    return torch.cat(flat, 0).movedim(0, -1)


def _check_inputs(layer: Attention, inputs: Tensor) -> None:
    if inputs.ndim < 2 or inputs.shape[-1] != layer.model:
        raise UsageError(f"The inputs must have shape [..., seq, {layer.model}], got {tuple(inputs.shape)}.")


def matrix_names(subject: Subject) -> tuple[str, ...]:
    """Parameters of queries, keys, values and output, in this order."""
    return tuple(m.weight for m in subject.anatomy.blocks[0].maps()[:4])


def split(tensors: Mapping[str, Tensor], subject: Subject, heads: int) -> HeadsGradient:
    """Four stored matrices, of weights or of their gradients, as one factor per head, in float64."""
    stored = [tensors[name].detach().double().T for name in matrix_names(subject)]
    query, key, value = (matrix.unflatten(1, (heads, -1)).transpose(0, 1) for matrix in stored[:3])
    return HeadsGradient(query=query, key=key, value=value, output=stored[3].unflatten(0, (heads, -1)))


def heads_of(subject: Subject, module: BareAttention) -> Heads:
    """The layer in factors."""
    own = split(subject.parameters(), subject, module.heads)
    return Heads(query=own.query, key=own.key, value=own.value, output=own.output, scale=own.query.shape[-1] ** -0.5)
