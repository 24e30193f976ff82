"""What passes at the layers of the first block is tested again at the inputs of the second, where a wrong token anywhere in a prefix
shows: there strangers are prefixes that hold one token of another record, and not random tokens. Must not know how sequences are searched.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks
from gradleak.mechanics.subspace.null_laws import log_odds
from gradleak.span.decoder.continuations import Grid
from gradleak.span.reading.observed_layer import ObservedLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What was set by hand.

    Attributes:
        confusions: prefixes with one token exchanged that show what a wrong one looks like.
        member: ratio of a residual to a member's expected one below which an exchange may be a record of the batch itself; a layer that
            does not set the others so far apart is not asked. Set by hand after a few batches, whose members showed 1.0 to 1.3 times what is expected.
        lowest: share of the exchanged prefixes that lie below what stands for them all: their spread is that of attention weights, over
            decades, and no law is fitted to it.
        activations: width-sized activations that a block holds per token; sizes the chunks.
    """

    confusions: int = 64
    member: float = 10.0
    lowest: float = 0.05
    activations: int = 12


SETTINGS = Settings()


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterLayers:
    """The test of whole prefixes at the inputs of the second block.

    Attributes:
        layers: in the order of the model, at least one.
        grid: candidates per position, for exchanges.
        start: positions of padding before every sequence.
        shown: what exchanged prefixes of a length show, per layer; filled as lengths are asked for.
    """

    layers: tuple[ObservedLayer, ...]
    model: Model
    grid: Grid
    rng: torch.Generator
    start: int = 0
    shown: dict[int, list[float]] = field(default_factory=dict)

    def since(self, start: int) -> LaterLayers:
        """The same for sequences that begin at position ``start``, behind padding."""
        return replace(self, grid=self.grid.since(start), start=self.start + start, shown={}) if start else self

    def passed(self, prefixes: Int64[Tensor, "prefixes length"]) -> Bool[Tensor, " prefixes"]:
        """Which prefixes (rows of candidate numbers) are members at their last position; all where no layer can tell."""
        return self._odds(prefixes, slice(-1, None))[:, 0] < 0

    def passed_whole(self, ids: Int64[Tensor, "sequences length"]) -> Bool[Tensor, " sequences"]:
        """Which sequences of tokens are members at all their positions."""
        numbers = torch.stack([self.grid.numbers(row) for row in ids])
        return (self._odds(numbers, slice(None)) < 0).all(dim=1)

    def _odds(self, numbers: Int64[Tensor, "prefixes length"], places: slice) -> Float[Tensor, "prefixes places"]:
        """Evidence against each position, of all layers that can tell; negative for members."""
        cuts = self._cuts(numbers)
        nothing = torch.full((len(numbers), 1), -1.0, dtype=torch.float64, device=numbers.device)
        if not any(cuts):
            return nothing
        shown: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.layers]
        for _, inputs in self._inputs(self.grid.ids(numbers)):
            for layer, values, parts in zip(self.layers, inputs, shown, strict=True):
                kept = values[:, places]
                parts.append((layer.space.residual(kept), layer.space.expected(kept)))
        odds, usable = torch.zeros_like(nothing), False
        for cut, parts in zip(cuts, shown, strict=True):
            residual, expected = (torch.cat(column) for column in zip(*parts, strict=True))
            if cut > SETTINGS.member * float(expected.median()):
                odds, usable = odds + log_odds(residual, expected, null_cut=cut), True
        return odds if usable else nothing

    def _cuts(self, numbers: Int64[Tensor, "prefixes length"]) -> list[float]:
        """Per layer what an exchanged prefix shows at least, but for the lowest; 0 where none is known.

        Prefixes are exchanged at lengths 1, 2, 4, 8, …; between them attention dilutes one wrong token in proportion.
        """
        length = numbers.shape[1]
        asked = 1 << (length.bit_length() - 1)
        if asked not in self.shown:
            self.shown[asked] = self._lowest(numbers[:, :asked])
        return [lowest * asked / length for lowest in self.shown[asked]]

    def _lowest(self, numbers: Int64[Tensor, "prefixes length"]) -> list[float]:
        shown: list[list[Tensor]] = [[] for _ in self.layers]
        for _, inputs in self._inputs(self.grid.ids(self._exchanged(numbers))):
            for layer, values, residuals in zip(self.layers, inputs, shown, strict=True):
                residual, expected = layer.space.residual(values[:, -1]), layer.space.expected(values[:, -1])
                residuals.append(residual[residual > SETTINGS.member * expected])
        strangers = [torch.cat(residuals) for residuals in shown]
        return [float(each.quantile(SETTINGS.lowest)) if len(each) else 0.0 for each in strangers]

    def _exchanged(self, numbers: Int64[Tensor, "prefixes length"]) -> Int64[Tensor, "exchanged length"]:
        """Prefixes with another candidate, or a random token, in one place."""
        count, length = SETTINGS.confusions, numbers.shape[1]
        device = numbers.device
        rows = numbers[torch.randint(len(numbers), (count,), generator=self.rng).to(device)].clone()
        places = torch.randint(length, (count,), generator=self.rng)
        choices = torch.rand(count, generator=self.rng)
        options = torch.tensor(self.grid.counts)[places] + (len(self.grid.tokens) - max(self.grid.counts))
        drawn = (choices * options).long()
        # Numbers beyond a position's candidates are its random tokens, the last rows of the grid.
        counts = torch.tensor(self.grid.counts)[places]
        drawn = torch.where(drawn < counts, drawn, drawn - counts + max(self.grid.counts))
        rows[torch.arange(count, device=device), places.to(device)] = drawn.to(device)
        return rows

    def _inputs(self, ids: Int64[Tensor, "rows length"]) -> list[tuple[slice, list[Tensor]]]:
        width = max(layer.space.features for layer in self.layers)
        floats = (self.start + ids.shape[1]) * width * SETTINGS.activations
        return [
            (part, self.model.inputs_behind(self.start, self.layers, ids[part])) for part in chunks(len(ids), floats)
        ]
