"""Who attends to whom decides what can leak: everyone, everyone before, or a window of neighbors, and in some families
another answer in every block. Read from one backward pass of the model itself; a place that is not attended to gets a
gradient of exactly zero. Must not know a model's type or its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from gradleak.core.errors import NotApplicableError
from gradleak.models import Subject

_FAINT = 1e-3
"""Queries, keys and values are scaled by this, so that no softmax weight is too small for its gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """Place i of a record attends to places i − ``before`` … i + ``after``; None stands for all there are."""

    before: int | None
    after: int | None

    @property
    def causal(self) -> bool:
        return self.after == 0

    def visible(self, mask: Bool[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq seq"]:
        """``[record query key]``: real places that real places attend to."""
        place = torch.arange(mask.shape[1], device=mask.device)
        ahead = place.unsqueeze(0) - place.unsqueeze(1)
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if self.before is not None:
            seen &= ahead >= -self.before
        if self.after is not None:
            seen &= ahead <= self.after
        return seen & mask.unsqueeze(1) & mask.unsqueeze(2)


def read_bands(subject: Subject, *, positions: int) -> tuple[Band, ...]:
    """The band of every block for records of ``positions`` tokens, the first block first.

    Raises:
        NotApplicableError: if the places that one attends to are no band (chunks, or single places that see everything).
    """
    probed = sorted({0, positions // 2, positions - 1})
    rows = _visible_rows(subject, positions, probed)
    return tuple(_band(row, probed) for row in rows)


def _band(rows: Bool[Tensor, "probed seq"], probed: Sequence[int]) -> Band:
    """From the rows of the first, the middle and the last place."""
    last, positions = probed[-1], rows.shape[1]
    before, after = last - int(rows[-1].nonzero()[0]), int(rows[0].nonzero()[-1])
    band = Band(before=None if before == last else before, after=None if after == last else after)
    wanted = band.visible(torch.ones(1, positions, dtype=torch.bool))[0, list(probed)]
    if not torch.equal(wanted, rows):
        raise NotApplicableError(
            "The places that a token of this model attends to are neither all, nor all before it, nor a window around it; "
            "the laws of the first attention are not known for such a pattern."
        )
    return band


def _visible_rows(subject: Subject, positions: int, probed: Sequence[int]) -> list[Bool[Tensor, "probed seq"]]:
    """Per block, the places that each probed place attends to."""
    blocks = subject.anatomy.blocks
    read: dict[str, Tensor] = {}
    handed: dict[str, Tensor] = {}

    def keep_read(path: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            read[path] = (_FAINT * output).detach().requires_grad_()
            return read[path]

        return hook

    def keep_handed(path: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            handed[path] = args[0] if args else next(iter(kwargs.values()))

        return hook

    module, handles = subject.module, []
    for block in blocks:
        handles += [
            module.get_submodule(m.module).register_forward_hook(keep_read(m.module)) for m in block.attention_inputs
        ]
        out = block.attention_output.module
        handles.append(module.get_submodule(out).register_forward_pre_hook(keep_handed(out), with_kwargs=True))
    constants = {name: p.detach() for name, p in subject.parameters().items()}
    row = torch.arange(positions) % subject.anatomy.vocab_size
    try:
        with torch.enable_grad():
            subject.logits(constants, inputs=row.expand(len(probed), -1))
            total = torch.stack(
                [
                    handed[b.attention_output.module].reshape(len(probed), positions, -1)[n, place].sum()
                    for b in blocks
                    for n, place in enumerate(probed)
                ]
            ).sum()
    finally:
        for handle in handles:
            handle.remove()
    slopes = torch.autograd.grad(total, list(read.values()), allow_unused=True, materialize_grads=True)
    moved = {path: g.reshape(len(probed), positions, -1).ne(0).any(-1) for path, g in zip(read, slopes, strict=True)}
    return [torch.stack([moved[m.module] for m in block.attention_inputs]).any(0) for block in blocks]
