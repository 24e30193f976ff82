"""Why: what a layer reads behind a normalization is a nonlinear function of the residual stream, but whether that lies in
a column space is a linear question about the stream. Must not know attention or search.

With norm(r) = γ ∘ C r / σ(r) + β (C centers for LayerNorm and is the identity for RMSNorm) and a direction N that the
space forbids, N ⟂ β:  Nᵀ norm(r) = 0  ⇔  (C (γ ∘ N))ᵀ r = 0.  The unknown scale σ drops out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.span.reading.readers import Model

_SAME = 1e-4
"""Relative difference below which a closed form counts as the layer itself: rounding is far below, a wrong form above."""


def norm_before(model: Model, path: str, norms: Sequence[str], ids: Int64[Tensor, "batch seq"]) -> str | None:
    """The normalization whose output the layer at ``path`` reads: told by values, not by place or name."""
    found = linear_inputs(model.subject, (path, *norms), ids, parameters=model.parameters)
    for norm in norms:
        made = _run(model, norm, found[norm])
        if made.shape == found[path].shape and _close(made, found[path]):
            return norm
    return None


def fold(
    model: Model,
    norm: str,
    forbidden: Float[Tensor, "features directions"],
    stream: Float[Tensor, "rows features"],
    read: Float[Tensor, "rows features"],
) -> Float[Tensor, "features folded"] | None:
    """The forbidden directions as linear functionals of the stream.

    Args:
        norm: path of the normalization between ``stream`` and ``read``, which are samples of its input and output.
        forbidden: orthonormal directions outside the space that ``read`` is tested against.

    Returns:
        None if neither LayerNorm's nor RMSNorm's form reproduces the samples.
    """
    gain, bias = (_parameters_of(model, norm).get(name) for name in ("weight", "bias"))
    if bias is not None and bool(bias.any()):
        forbidden = _orthogonal_to(forbidden, bias.double())
    scaled = forbidden if gain is None else gain.double().unsqueeze(1) * forbidden
    wanted = read.double() @ forbidden
    for folded in (scaled - scaled.mean(0), scaled):
        made = stream.double() @ folded
        # Equal up to a positive factor per row.
        factor = (made * wanted).sum(1) / made.square().sum(1)
        if bool((factor > 0).all()) and _close(made * factor.unsqueeze(1), wanted):
            return folded
    return None


def parameter(model: Model, name: str) -> Tensor:
    """A parameter as the probe runs the model."""
    replaced = (model.parameters or {}).get(name)
    return (model.subject.module.get_parameter(name) if replaced is None else replaced).detach()


def _orthogonal_to(directions: Tensor, vector: Tensor) -> Tensor:
    """An orthonormal basis of the part of the directions' space that is orthogonal to a vector: one direction fewer."""
    along = directions.T @ vector
    return directions @ torch.linalg.qr(along.unsqueeze(1), mode="complete").Q[:, 1:]


def _run(model: Model, norm: str, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        module = model.subject.module.get_submodule(norm)
        return torch.func.functional_call(module, _parameters_of(model, norm), (inputs,))


def _parameters_of(model: Model, path: str) -> dict[str, Tensor]:
    module = model.subject.module.get_submodule(path)
    return {name: parameter(model, f"{path}.{name}") for name, _ in module.named_parameters()}


def _close(made: Tensor, wanted: Tensor) -> bool:
    return bool((made - wanted).norm() <= _SAME * wanted.norm())
