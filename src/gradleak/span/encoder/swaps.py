"""Why: where the first attention has no closed form here (rotated queries, a bias on its scores), sentences of a
bidirectional model are searched by running it: one position is exchanged at a time, from many starts at once. Right for
every architecture, slow, and without a guarantee. Must not know labels or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.probe import chunks
from gradleak.span.reading.readers import Model, Reader

_CHAINS = 16
_POLISHED = 3
_SWEEPS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Descent over sentences whose options per position are given.

    Attributes:
        options: token ids per position.
        reader: a place behind the first attention, whose residual is the cost.
    """

    options: Sequence[Int64[Tensor, " options"]]
    reader: Reader
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
