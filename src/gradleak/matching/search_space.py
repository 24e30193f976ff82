"""Where a matching attack looks for embeddings. Everywhere, in units of the token table; or only where the first
attention's gradients leave room: their column space holds every input of that layer, and what a normalized sum of token
and position may be for its norm to lie in that space is a linear condition on the embedding. Must not know objectives.

With norm(e + P_p) = γ ∘ C (e + P_p) / σ + β and N the directions outside the column space, orthogonal to β, a member has
Fᵀ(e + P_p) = 0 with F = C (γ ∘ N): the unknown σ drops out. About as many numbers per token are left as there are tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.core.knowledge import View
from gradleak.mechanics.client.framing import UNKNOWN, Framing
from gradleak.mechanics.probing.first_input import FirstInput, read_first_input
from gradleak.mechanics.subspace.frames import orthogonal_to
from gradleak.mechanics.subspace.subspace import column_space
from gradleak.models import Subject

_NULL = 1e-6
"""Relative singular value below which two conditions are one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """Inputs as ``center + (scale · u) @ basis``; without a basis ``u`` has the inputs' own shape.

    Attributes:
        folded: inputs beyond 0 and 1 are mirrored at them, so that nothing lies outside and a slope is everywhere.
    """

    center: Tensor
    scale: Tensor
    shape: tuple[int, ...]
    basis: Float[Tensor, "free model"] | None = None
    folded: bool = False

    def inputs(self, u: Tensor) -> Tensor:
        moved = self.scale * u
        point = self.center + (moved if self.basis is None else moved @ self.basis)
        return 1.0 - (torch.remainder(point, 2.0) - 1.0).abs() if self.folded else point


def pixels(shape: tuple[int, ...], *, folded: bool = False) -> SearchSpace:
    """All of [0, 1] and, unless folded, what lies around it."""
    return SearchSpace(center=torch.tensor(0.5), scale=torch.tensor(0.25), shape=shape, folded=folded)


def embeddings(view: View, table: Tensor, batch_size: int, seq_len: int) -> SearchSpace:
    """Center and scale of every place: those of the token table; where the framing tells the token, that token and 0."""
    center = table.mean(0).expand(batch_size, seq_len, -1)
    scale = table.std(0).expand(batch_size, seq_len, -1)
    framing: Framing | None = view.get("framing")
    if framing is not None:
        mask = view.get("mask")
        # Padding goes to the longest record: one record alone has none.
        lengths = torch.full((batch_size,), seq_len if batch_size == 1 else 0) if mask is None else mask.sum(1)
        known = framing.known(lengths, seq_len).unsqueeze(-1)
        is_known = known != UNKNOWN
        center = torch.where(is_known, table[known.squeeze(-1).clamp_min(0)], center)
        scale = torch.where(is_known, 0.0, scale)
    return SearchSpace(center=center, scale=scale, shape=tuple(center.shape))


def within_span(whole: SearchSpace, subject: Subject, update: Mapping[str, Tensor]) -> SearchSpace:
    """The part of ``whole`` in which the first attention's inputs lie in the column space of its gradients.

    ``whole`` comes back where that space is no restriction or not certain to hold every token: if a map's gradient is not
    there, the input follows no law, there are as many places as features, one block leaves a mixture, or a language model's last token
    sends no signal.
    """
    law, forbidden = _forbidden(subject, update, whole.shape)
    if law is None or forbidden is None:
        return whole
    free = _free(law.norm.fold(forbidden))
    if free.shape[0] >= whole.shape[-1]:
        return whole
    free = free.to(whole.center.dtype)
    fixed = -law.positions[: whole.shape[1]].to(free.dtype)
    # The member of the affine space of each position that is closest to the center of the table; told tokens stay.
    outside = fixed - whole.center
    is_known = (whole.scale == 0).all(-1, keepdim=True)
    center = torch.where(is_known, whole.center, whole.center + outside - (outside @ free.T) @ free)
    spread = whole.scale.square().mean(-1, keepdim=True).sqrt()
    return SearchSpace(center=center, scale=spread, shape=(*whole.shape[:-1], free.shape[0]), basis=free)


def _forbidden(
    subject: Subject, update: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[FirstInput | None, Tensor | None]:
    """The law of the first input, and orthonormal directions outside the span that are orthogonal to its offset."""
    maps = subject.anatomy.first_maps()
    crowded = shape[0] * shape[1] >= maps[0].in_features - 1
    mixed = len(subject.anatomy.blocks) < 2 or not subject.loss.sees_every_token
    if crowded or mixed or any(m.weight not in update for m in maps):
        return None, None
    law = read_first_input(subject, maps[0].module, positions=shape[1])
    if law is None:
        return None, None
    gradients = [m.as_matrix(update[m.weight].float()).T for m in maps]
    space = column_space(gradients, noise_std=[0.0] * len(gradients), summands=shape[0] * shape[1])
    outside = space.complement
    if bool(law.norm.offset.any()):
        outside = orthogonal_to(outside, law.norm.offset.double())
    return law, outside


def _free(conditions: Float[Tensor, "model conditions"]) -> Float[Tensor, "free model"]:
    """Orthonormal rows on which all conditions vanish."""
    left, values, _ = torch.linalg.svd(conditions, full_matrices=True)
    held = int((values > _NULL * values[0]).sum())
    return left[:, held:].T


def token_table(subject: Subject) -> Float[Tensor, "vocab model"]:
    """The embedding of every token, as the model's first block adds positions to it; detached."""
    with torch.no_grad():
        return subject.embed(torch.arange(subject.anatomy.vocab_size).unsqueeze(0))[0]


def nearest_tokens(
    subject: Subject, embeddings: Float[Tensor, "batch seq model"], mask: Bool[Tensor, "batch seq"]
) -> tuple[Int64[Tensor, " length"], ...]:
    """The token with the largest cosine at every real position; padding at the end of a record is cut off."""
    table = torch.nn.functional.normalize(token_table(subject), dim=-1)
    ids = (torch.nn.functional.normalize(embeddings, dim=-1) @ table.T).argmax(-1)
    pad = subject.tokenizer.pad_id if subject.tokenizer is not None else -1
    return tuple(_without_tail(row[keep], pad) for row, keep in zip(ids, mask, strict=True))


def _without_tail(ids: Int64[Tensor, " seq"], pad: int) -> Int64[Tensor, " length"]:
    content = (ids != pad).nonzero().flatten()
    return ids[: int(content[-1]) + 1] if content.numel() else ids[:0]
