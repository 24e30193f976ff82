"""Why: second derivatives of bare attention in closed form, in the shape in which they are right. Two of the formulas
that the literature prints are not; the tests keep the printed ones and show them fail. Must not know attacks or noise.

For one head (scores W, values U), output entry (j, i) with logits z_j = s·A_j vec(W), A_j = x_j ⊗ X row-wise:
f = softmax(z_j), h = H_{·,i}, c = ⟨f, h⟩ − b_{ji}, a = f ∘ (h − ⟨f, h⟩ 1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import UsageError
from gradleak.mechanics.attention.softmax import Attention


def logit_curvature(
    f: Float[Tensor, "*batch seq"], h: Float[Tensor, "*batch seq"], c: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch seq seq"]:
    """Second derivative of ½ c² in the logits: a aᵀ + c (diag a − a fᵀ − f aᵀ).

    Source: corrects arXiv 2309.07418, Definition D.3, whose diagonal and rank-two coefficient are wrong as printed
        (``tests/mechanics/attention/test_hessian.py``).
    """
    a = _centered(f, h)
    cross = a.unsqueeze(-1) * f.unsqueeze(-2)
    return a.unsqueeze(-1) * a.unsqueeze(-2) + c[..., None, None] * (torch.diag_embed(a) - cross - cross.mT)


def logit_value_curvature(
    f: Float[Tensor, "*batch seq"], h: Float[Tensor, "*batch seq"], c: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch seq seq"]:
    """Mixed derivative of ½ c² in the logits and in h: a fᵀ + c (diag f − f fᵀ)."""
    a = _centered(f, h)
    return a.unsqueeze(-1) * f.unsqueeze(-2) + c[..., None, None] * (
        torch.diag_embed(f) - f.unsqueeze(-1) * f.unsqueeze(-2)
    )


def weight_hessian(
    layer: Attention, inputs: Float[Tensor, "seq model"], targets: Float[Tensor, "seq out"]
) -> Float[Tensor, "entries entries"]:
    """The Hessian of the loss in (vec W, vec U), row-major, for a layer of one head.

    Guarantees:
        Equals autograd's Hessian to rounding. It is indefinite in general: the loss is not convex in the weights.

    Raises:
        UsageError: for several heads.
    """
    if layer.scores.shape[:-2] != (1,):
        raise UsageError(f"The weight Hessian is for one head and one layer, got scores {tuple(layer.scores.shape)}.")
    point = layer.at(inputs, targets)
    f, mixed, error = point.weights[0], point.mixed[0], point.error
    seq, model = inputs.shape
    out = error.shape[1]
    rows = layer.scale * torch.einsum("jd,ne->jnde", inputs, inputs).reshape(seq, seq, model * model)
    f_all, h_all = f.unsqueeze(1).expand(seq, out, seq), mixed.T.unsqueeze(0).expand(seq, out, seq)
    curvature = logit_curvature(f_all, h_all, error).sum(1)
    scores = torch.einsum("jnp,jnm,jmq->pq", rows, curvature, rows)
    mixed_part = torch.einsum("jnp,jinm,md->pdi", rows, logit_value_curvature(f_all, h_all, error), inputs)
    cross = mixed_part.reshape(model * model, model * out)
    moved = f @ inputs
    values = torch.kron(moved.T @ moved, torch.eye(out, dtype=inputs.dtype, device=inputs.device))
    return torch.cat((torch.cat((scores, cross), 1), torch.cat((cross.T, values), 1)), 0)


def output_jacobian(layer: Attention, inputs: Float[Tensor, "seq model"]) -> Float[Tensor, "seq out seq model"]:
    """dY_{i₀ j₀} / dX_{i₁ j₁} for a layer of one head.

    S_{i₀i₁} [ s (Wᵀx_{i₀})_{j₁} (h_{i₁j₀} − y_{i₀j₀}) + U_{j₁j₀} ] + 1[i₀ = i₁] Σ_k S_{i₀k} s (W x_k)_{j₁} (h_{kj₀} − y_{i₀j₀})

    Source: corrects Lemma B.16 of arXiv 2310.12462 (read as restated in arXiv 2408.13233, Lemma D.1), which has the
        attention weights transposed and W in the place of Wᵀ.
    """
    if layer.scores.shape[:-2] != (1,):
        raise UsageError(f"The output Jacobian is for one head and one layer, got scores {tuple(layer.scores.shape)}.")
    weights, w, u = layer.weights_of(inputs)[0], layer.scores[0], layer.values[0]
    mixed = inputs @ u
    gap = mixed.unsqueeze(0) - (weights @ mixed).unsqueeze(1)
    as_key = torch.einsum("ab,ad,abo->aobd", weights, layer.scale * inputs @ w, gap)
    as_value = torch.einsum("ab,do->aobd", weights, u)
    as_query = torch.einsum("ak,kd,ako->aod", weights, layer.scale * inputs @ w.T, gap)
    own = torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    return as_key + as_value + torch.einsum("aod,ab->aobd", as_query, own)


def _centered(f: Tensor, h: Tensor) -> Tensor:
    return f * (h - (f * h).sum(-1, keepdim=True))
