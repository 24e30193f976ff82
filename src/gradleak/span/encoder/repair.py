"""What a layer reads behind a normalization is a nonlinear function of the residual stream, but whether that lies in
a column space is a linear question about the stream. Must not know attention or search.

With norm(r) = γ ∘ C r / σ(r) + β (C centers for LayerNorm and is the identity for RMSNorm) and a direction N that the
space forbids, N ⟂ β:  Nᵀ norm(r) = 0  ⇔  (C (γ ∘ N))ᵀ r = 0.  The unknown scale σ drops out.

Where the first attention has no closed form here (rotated queries, a bias on its scores), sentences of a
bidirectional model are searched by running it: one position is exchanged at a time, from many starts at once. Right for
every architecture, slow, and without a guarantee. Must not know labels or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks, linear_inputs
from gradleak.mechanics.subspace.frames import orthogonal_to
from gradleak.span.reading.observed_layer import ObservedLayer

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
        forbidden = orthogonal_to(forbidden, bias.double())
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


def _run(model: Model, norm: str, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        module = model.subject.module.get_submodule(norm)
        return torch.func.functional_call(module, _parameters_of(model, norm), (inputs,))


def _parameters_of(model: Model, path: str) -> dict[str, Tensor]:
    module = model.subject.module.get_submodule(path)
    return {name: parameter(model, f"{path}.{name}") for name, _ in module.named_parameters()}


def _close(made: Tensor, wanted: Tensor) -> bool:
    return bool((made - wanted).norm() <= _SAME * wanted.norm())


_CHAINS = 16
_POLISHED = 3
_SWEEPS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class SwapSearch:
    """Descent over sentences whose options per position are given.

    Attributes:
        options: token ids per position.
        reader: a place behind the first attention, whose residual is the cost.
    """

    options: Sequence[Int64[Tensor, " options"]]
    reader: ObservedLayer
    model: Model

    def anchor_positions(self) -> list[int]:
        """Positions with a choice, fewest options first: every sentence passes through each of them."""
        counts = [ids.numel() for ids in self.options]
        return sorted((p for p, count in enumerate(counts) if count > 1), key=counts.__getitem__)

    def proposals(self, anchor: int, rng: torch.Generator) -> Iterator[Int64[Tensor, "sentences seq"]]:
        """Sentences through every option at ``anchor``, and then the best of them polished.

        First only the anchor and positions without a choice are watched, which any true sentence with this token
        satisfies; then all positions, with the anchor free.
        """
        watched = [*(p for p, ids in enumerate(self.options) if ids.numel() == 1), anchor]
        free = [p for p in range(len(self.options)) if p not in watched]
        rows = self._descend(self._starts(anchor, rng), free, watched=watched, rng=rng)
        yield rows
        if not free:
            return
        order = self._cost(rows, watched).argsort()
        rows = rows[order].unique(dim=0)
        rows = rows[self._cost(rows, watched).argsort()[:_POLISHED]]
        yield self._descend(rows, [*free, anchor], watched=list(range(len(self.options))), rng=rng)

    def _starts(self, anchor: int, rng: torch.Generator) -> Int64[Tensor, "chains seq"]:
        begin = self.options[anchor].repeat(max(1, _CHAINS // self.options[anchor].numel()))
        rows = torch.stack([o[torch.randint(o.numel(), (len(begin),), generator=rng)] for o in self.options], dim=1)
        rows[:, anchor] = begin
        return rows

    def _descend(self, rows: Tensor, free: Sequence[int], *, watched: Sequence[int], rng: torch.Generator) -> Tensor:
        """Exchanges the best option at one position after the other until no chain changes."""
        rows = rows.clone()
        for _ in range(_SWEEPS):
            before = rows.clone()
            for index in torch.randperm(len(free), generator=rng).tolist():
                place, options = free[index], self.options[free[index]]
                trial = rows.unsqueeze(1).repeat(1, options.numel(), 1)
                trial[:, :, place] = options
                costs = self._cost(trial.flatten(0, 1), watched).reshape(len(rows), -1)
                rows[:, place] = options[costs.argmin(1)]
            if torch.equal(before, rows):
                break
        return rows

    def _cost(self, rows: Int64[Tensor, "sentences seq"], watched: Sequence[int]) -> Float[Tensor, " sentences"]:
        found: list[Tensor] = []
        for part in chunks(len(rows), rows.shape[1] * self.reader.space.features * 12):
            (z,) = self.model.inputs((self.reader,), rows[part])
            found.append(self.reader.space.residual(z[:, list(watched)]).square().sum(1))
        return torch.cat(found)
