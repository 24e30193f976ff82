"""Why: a space that is full (more tokens than the layer is wide) or blurred by noise settles no membership. It still
prefers its members: along directions that the gradient holds much of, a member is likelier. Every layer prefers a little,
and what they prefer adds up. Must not know how sequences are searched.

With G = Σ xᵢ δᵢᵀ + noise and C = G Gᵀ / columns, a vector x is weighed by  q(x) = xᵀ C⁻¹ x / ‖x‖².  Members have small
q: where their number n is below the width it is the noise over their own energy; beyond it, q of a member is about
features/n of what a stranger shows, for members of even energy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks, linear_inputs
from gradleak.mechanics.subspace.noise_level import whiten
from gradleak.models import LinearMap
from gradleak.span.reading.observed_layer import NoiseOf

_FLOATS_EACH = 12
_ROUNDS = 8
_LEAST_SPREAD = 1e-3
_ENOUGH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientLikelihood:
    """One layer's preference.

    Attributes:
        path: module whose input is weighed.
        gradient: the shared gradient in units of its noise per entry, ``[features columns]``.
        root: q(x) = ‖x root‖² / ‖x‖².
    """

    path: str
    gradient: Float[Tensor, "features columns"]
    root: Float[Tensor, "features features"]

    @staticmethod
    def of(update: Mapping[str, Tensor], maps: Sequence[LinearMap], noise_std: NoiseOf) -> GradientLikelihood | None:
        """None if the update holds no gradient of these maps, or only zeros."""
        shared = [m for m in maps if m.weight in update and bool(update[m.weight].any())]
        if not shared:
            return None
        white = whiten([m.as_matrix(update[m.weight]).T for m in shared], [noise_std(m.weight) for m in shared])
        gradient = white.features
        values, vectors = torch.linalg.eigh(gradient @ gradient.T / gradient.shape[1])
        # Below one lies what noise alone gives.
        root = vectors / values.clamp(min=1.0).sqrt()
        return GradientLikelihood(path=shared[0].module, gradient=gradient, root=root.float())

    def weigh(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """log q(x)."""
        length = x.norm(dim=-1).clamp(min=1e-30)
        return 2 * ((x @ self.root.to(x.dtype)).norm(dim=-1) / length).clamp(min=1e-30).log().double()


def gradient_likelihoods(
    update: Mapping[str, Tensor], model: Model, noise_std: NoiseOf, *, blocks: int = 3
) -> tuple[GradientLikelihood, ...]:
    """Of every place behind the first attention in the first ``blocks`` blocks; of the last one, its attention's input only."""
    found: list[GradientLikelihood | None] = []
    for number, block in enumerate(model.subject.anatomy.blocks[:blocks]):
        groups = (block.attention_inputs, (block.attention_output,), block.mlp_inputs)
        first, last = 1 if number == 0 else 0, 1 if number == blocks - 1 else 3
        found += [GradientLikelihood.of(update, maps, noise_std) for maps in groups[first:last]]
    return tuple(preference for preference in found if preference is not None)


def weigh_rows(
    preferred: Sequence[GradientLikelihood], model: Model, rows: Int64[Tensor, "rows seq"], clock: Clock
) -> Float[Tensor, "rows layers"] | None:
    """log q at the last position of each row, layer by layer; None if the time was spent before the end."""
    width = model.subject.anatomy.hidden_size
    found: list[Tensor] = []
    for part in chunks(len(rows), rows.shape[1] * width * _FLOATS_EACH):
        if clock.spent():
            return None
        inputs = linear_inputs(model.subject, [p.path for p in preferred], rows[part], parameters=model.parameters)
        found.append(torch.stack([p.weigh(inputs[p.path][:, -1]) for p in preferred], dim=1))
    return torch.cat(found)


def evidence(weights: Float[Tensor, "prefixes extensions layers"]) -> Float[Tensor, "prefixes extensions"]:
    """Log-likelihood ratio that an extension is a member, summed over layers.

    In each layer the logarithms of q of members and of strangers are taken as normal. Which extensions are members is not
    known: the best of each prefix is taken for one, by the layer that tells best from second best most clearly; then both
    laws are fitted, the evidence of all layers is summed, and the best is chosen anew until nothing changes.

    Args:
        weights: log q; NaN where an extension was not weighed, which then has evidence -inf.
    """
    prefixes, extensions, _ = weights.shape
    weighed = ~weights[..., 0].isnan()
    if extensions == 1:
        return torch.where(weighed, 0.0, -torch.inf).to(weights.dtype)
    # What a prefix brings with it is common to all its extensions; what a token brings, to all prefixes that it extends.
    for _ in range(2):
        if prefixes >= _ENOUGH:
            weights = weights - weights.nanmedian(dim=0, keepdim=True).values
        weights = weights - weights.nanmedian(dim=1, keepdim=True).values
    tables = [_Table(values=w, weighed=weighed) for w in weights.unbind(-1)]
    clearest = max(tables, key=_Table.separation)
    total = -clearest.filled
    best = total.argmax(dim=1)
    for _ in range(_ROUNDS):
        total = sum((table.ratio(best) for table in tables), torch.zeros_like(total))
        total = torch.where(weighed, total, -torch.inf)
        chosen = total.argmax(dim=1)
        if bool((chosen == best).all()):
            break
        best = chosen
    return total


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """What one layer says of all extensions of all prefixes."""

    values: Float[Tensor, "prefixes extensions"]
    weighed: Bool[Tensor, "prefixes extensions"]

    @property
    def filled(self) -> Float[Tensor, "prefixes extensions"]:
        return torch.where(self.weighed, self.values, torch.inf)

    def split(self, best: Int64[Tensor, " prefixes"]) -> tuple[Tensor, Tensor]:
        """Members and strangers, if the best of each prefix are the members."""
        member = torch.zeros_like(self.weighed).scatter_(1, best.unsqueeze(1), True)
        return self.values[member & self.weighed], self.values[~member & self.weighed]

    def separation(self) -> float:
        """How far the best of each prefix lies below the second, in spreads of the rest."""
        two = self.filled.topk(2, dim=1, largest=False).values
        _, rest = self.split(self.filled.argmin(dim=1))
        return float((two[:, 1] - two[:, 0]).median() / _spread(rest))

    def ratio(self, best: Int64[Tensor, " prefixes"]) -> Float[Tensor, "prefixes extensions"]:
        """log p(member)/p(stranger); lower than a member's usual value counts no more than that value."""
        members, rest = self.split(best)
        low, high = members.mean(), rest.mean()
        wide = _spread(rest)
        narrow = _spread(members).maximum(wide / 4)
        most = ((low - high) / wide).square() / 2 + (wide / narrow).log()
        gap = ((self.values - high) / wide).square() / 2 - ((self.values - low) / narrow).square() / 2
        return torch.where(self.values < low, most, (gap + (wide / narrow).log()).minimum(most))


def _spread(values: Tensor) -> Tensor:
    if len(values) < 2:
        return values.new_tensor(_LEAST_SPREAD)
    return values.std().clamp(min=_LEAST_SPREAD)
