"""What a vision transformer's first normalization reads when nothing is shown: the constant part of every token, and the law of
the normalization. Read from behavior in float64. Must not know gradients, updates or attacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradleak.mechanics.probing.first_input import Norm, read_norm
from gradleak.models import Subject
from gradleak.models.reading.patches import PatchEmbedding, hooked, in_double
from gradleak.models.running.tracing import evaluating

_TOLERANCE = 1e-9
"""The law is a matter of structure and is read in float64: it holds to rounding or not at all."""

_INDEPENDENT = 1e-7
"""Unit vectors with smaller singular values than this are dependent: no update in float32 tells them apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstTokens:
    """Before the first normalization a patch's token is ``W x_p + offsets_p``, any other one is constant.

    Attributes:
        weight: W, ``[width features]``.
        offsets: of the patches; others: the tokens that no patch reaches (class token, registers).
        norm: the normalization that the first attention reads through.
    """

    weight: Float[Tensor, "width features"]
    offsets: Float[Tensor, "patches width"]
    others: Float[Tensor, "others width"]
    norm: Norm

    def equations_needed(self, records: int = 1) -> int:
        """The least width at which a generic record's patches follow: (records + 1) patches and the constants."""
        constants = len(self.others) + int(self.norm.centered) + int(bool(self.norm.offset.any()))
        return (records + 1) * len(self.offsets) + constants

    def undetermined(self) -> int:
        """Dimensions that one record's patches keep although their row spaces are known, whatever the record.

        A patch follows from the row spaces iff its constant part is no combination of those of the other tokens and of the
        all-ones vector, which the normalization removes. So the dimension is that of the null space of these vectors.
        """
        rest = self.others
        if self.norm.centered:
            rest = torch.cat([rest, torch.ones_like(self.offsets[:1])])
        return len(self.offsets) + _rank(rest) - _rank(torch.cat([self.offsets, rest]))


def _rank(rows: Float[Tensor, "rows width"]) -> int:
    lengths = rows.norm(dim=1, keepdim=True)
    live = rows[lengths[:, 0] > 0] / lengths[lengths[:, 0] > 0]
    return int(torch.linalg.matrix_rank(live, rtol=_INDEPENDENT)) if len(live) else 0


def read_first_tokens(subject: Subject, entrance: PatchEmbedding) -> FirstTokens | None:
    """Reads the constant parts of the first tokens.

    Returns:
        None if the first attention reads anything else than normalized sums of patches and constants.
    """
    weight = subject.module.get_parameter(entrance.weight).detach().double().flatten(1)
    shape = entrance.shape
    nothing = torch.zeros(1, *shape, dtype=torch.float64)
    shown = torch.cos(torch.arange(nothing.numel(), dtype=torch.float64) * 1.3 + 0.2).reshape(1, *shape)
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    _, blank, _ = _before_norm(subject, path, nothing)
    norm, seen, read = _before_norm(subject, path, shown)
    change = seen[0] - blank[0]
    moved = change.abs().amax(dim=1) > 0
    expected = entrance.to_patches(shown)[0] @ weight.T
    # Position by position: the tokens that moved are the patches, in some order.
    distance = torch.cdist(expected, change[moved])
    if int(moved.sum()) != entrance.count:
        return None
    order = distance.argmin(dim=1)
    if not torch.allclose(change[moved][order], expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max())):
        return None
    law = None if norm is None else _law(norm, seen[:, moved], read[:, moved])
    if law is None:
        return None
    return FirstTokens(weight=weight, offsets=blank[0][moved][order], others=blank[0][~moved], norm=law)


def _law(norm: nn.Module, x: Tensor, z: Tensor) -> Norm | None:
    state = in_double(norm)

    class _Double(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return torch.func.functional_call(norm, state, (value,))

    return read_norm(_Double(), x, z)


def _before_norm(
    subject: Subject, path: str, pixels: Float[Tensor, "1 channels height width"]
) -> tuple[nn.Module | None, Float[Tensor, "1 seq width"], Float[Tensor, "1 seq width"]]:
    """The normalization whose output the map at ``path`` reads (None if there is none), its input, and its output."""
    module = subject.module
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    read: list[Tensor] = []

    def keep(child: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and not read:
            seen.append((child, args[0].detach(), output.detach()))

    handles = [child.register_forward_hook(keep) for child in module.modules() if _holds_vectors_only(child)]
    handles.append(module.get_submodule(path).register_forward_pre_hook(lambda _, args: read.append(args[0].detach())))
    with hooked(handles), evaluating(module), torch.no_grad():
        torch.func.functional_call(module, in_double(module), kwargs={"pixel_values": pixels})
    z = read[0].reshape(1, -1, read[0].shape[-1])
    for child, x, output in reversed(seen):
        if output.numel() == z.numel() and torch.equal(output.reshape(z.shape), z):
            return child, x.reshape(z.shape), z
    return None, z, z


def _holds_vectors_only(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return not list(module.children()) and bool(own) and all(parameter.ndim == 1 for parameter in own)
