"""Before the first attention a position knows only its own token, so the layer's input is a normalized sum
x(v, p) = c·E_v + P_p of a row of the token table and a vector of the position. A linear test of it then factors into
one product with the table and one with the positions: V·k + P·k inner products in the place of V·P forward passes.

The law is read from the module's behavior and checked on samples; a module that does not follow it has none, and the
caller runs the module instead. Must not know gradients or attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import Subject

_SAMPLES = 3
"""Tokens on which the law is checked: structure shows on any of them."""
_TOLERANCE = 1e-4
"""The law is a matter of structure: it holds to rounding (1e-6) or not at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """A normalization as z = gain ∘ C x / σ(x) + offset.

    C removes the mean if ``centered``; σ is the root mean square of C x, or one where ``normalized`` is False (no
    normalization at all). ``gain`` is known up to one common factor.
    """

    gain: Float[Tensor, " features"]
    offset: Float[Tensor, " features"]
    centered: bool
    normalized: bool

    @staticmethod
    def none(like: Float[Tensor, "*batch features"]) -> Norm:
        """No normalization."""
        features = like.shape[-1]
        return Norm(gain=like.new_ones(features), offset=like.new_zeros(features), centered=False, normalized=False)

    def center(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """C x."""
        return x - x.mean(dim=-1, keepdim=True) if self.centered else x

    def fold(self, directions: Float[Tensor, "features columns"]) -> Float[Tensor, "features columns"]:
        """F with Fᵀx = directionsᵀ(gain ∘ C x): what a direction behind the normalization reads of x."""
        folded = self.gain.to(directions.dtype).unsqueeze(1) * directions
        return folded - folded.mean(dim=0, keepdim=True) if self.centered else folded


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstInput:
    """The first attention's input: ``norm`` of x(v, p) = scale · table_v + positions_p."""

    table: Float[Tensor, "vocab features"]
    scale: float
    positions: Float[Tensor, "positions features"]
    norm: Norm

    def before_norm(self, ids: Tensor) -> Float[Tensor, "batch seq features"]:
        """x for rows of token ids ``[batch seq]`` that start at the first position."""
        return self.scale * self.table[ids] + self.positions[: ids.shape[1]]

    def project(
        self, ids: Int64[Tensor, " tokens"], directions: Float[Tensor, "features columns"]
    ) -> Float[Tensor, "tokens positions columns"]:
        """Products of directions with the layer's input of tokens at every position: one per token and one per position."""
        norm, folded = self.norm, self.norm.fold(directions)
        token, place = norm.center(self.scale * self.table[ids]), norm.center(self.positions)
        products = (token @ folded).unsqueeze(1) + place @ folded
        if norm.normalized:
            squares = token.square().sum(1, keepdim=True) + place.square().sum(1) + 2 * token @ place.T
            sigma = (squares.clamp(min=1e-30) / token.shape[1]).sqrt()
            products = products / sigma.unsqueeze(-1)
        return products + norm.offset @ directions

    def rows(self, ids: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens positions features"]:
        """The layer's input of tokens at every position."""
        return self.project(ids, torch.eye(self.table.shape[1], dtype=self.table.dtype, device=self.table.device))


def read_first_input(
    subject: Subject, path: str, *, positions: int, parameters: Mapping[str, Tensor] | None = None
) -> FirstInput | None:
    """The law of the input of ``path``, or None if the module does not follow one.

    Args:
        path: a map that reads the first attention's input.
        positions: number of positions wanted, from the first.
        parameters: values in the place of the module's own, by name.
    """
    name = subject.anatomy.token_embedding
    if name is None:
        return None
    values = parameters or {}
    table = values.get(name, subject.module.get_parameter(name)).detach()
    ids = _spread(table.shape[0], table.device)
    rows = ids.unsqueeze(1).expand(-1, positions)
    norm, x, z = before_norm(subject, path, rows, parameters=parameters)
    if x.shape[-1] != table.shape[1]:
        return None
    first, second = table[ids[0]], table[ids[1]]
    spread = first - second
    scale = float((x[0, 0] - x[1, 0]) @ spread / spread.square().sum().clamp(min=1e-30))
    places = x[0] - scale * first
    if not _close(scale * table[ids].unsqueeze(1) + places, x):
        return None
    law = read_norm(norm, x, z)
    return None if law is None else FirstInput(table=table, scale=scale, positions=places, norm=law)


def _spread(vocab: int, device: torch.device) -> Tensor:
    """A few token ids spread over the vocabulary."""
    return torch.arange(1, _SAMPLES + 1, device=device) * (vocab // (_SAMPLES + 1))


def before_norm(
    subject: Subject, path: str, rows: Int64[Tensor, "batch seq"], *, parameters: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module | None, Float[Tensor, "batch seq features"], Float[Tensor, "batch seq features"]]:
    """The normalization whose output the map at ``path`` reads (None if there is none), its input, and its output."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((module, args[0].detach(), output.detach()))

    handles = [m.register_forward_hook(keep) for m in subject.module.modules() if _is_vectors_only(m)]
    try:
        z = linear_inputs(subject, (path,), rows, parameters=parameters)[path]
    finally:
        for handle in handles:
            handle.remove()
    for module, x, output in reversed(seen):
        if output.numel() == z.numel() and torch.equal(output.reshape(z.shape), z):
            return module, x.reshape(z.shape), z
    return None, z, z


def _is_vectors_only(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    leaf = not list(module.children())
    return leaf and bool(own) and all(parameter.ndim == 1 for parameter in own)


def read_norm(
    norm: nn.Module | None, x: Float[Tensor, "batch seq features"], z: Float[Tensor, "batch seq features"]
) -> Norm | None:
    """A normalization as a ``Norm``, from what it makes of probes; None if it does not make ``z`` of ``x`` that way."""
    if norm is None:
        return Norm.none(x)
    features = x.shape[-1]
    with torch.no_grad():
        offset = norm(x.new_zeros(1, features))[0]
        # Entries ±1 with mean zero: both kinds of normalization keep them, so the ratio is the gain itself.
        signs = 1.0 - 2.0 * (torch.arange(features, device=x.device) % 2).to(x.dtype)
        balanced = signs - signs.mean()
        gain = (norm(balanced.unsqueeze(0))[0] - offset) / balanced
        shifted = norm((balanced + 1.0).unsqueeze(0))[0]
    centered = _close(shifted, gain * balanced + offset)
    law = Norm(gain=gain, offset=offset, centered=centered, normalized=True)
    body = law.center(x)
    predicted = gain * body / body.square().mean(dim=-1, keepdim=True).sqrt()
    scaled = z - offset
    # The small constant under the root scales a vector; only the direction is part of the law.
    ratio = (scaled * predicted).sum(-1, keepdim=True) / predicted.square().sum(-1, keepdim=True).clamp(min=1e-30)
    return law if _close(ratio * predicted, scaled) else None


def _close(vectors: Tensor, other: Tensor) -> bool:
    return bool((vectors - other).norm() <= _TOLERANCE * other.norm())
