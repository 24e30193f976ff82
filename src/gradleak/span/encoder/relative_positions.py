"""Why: where positions enter by rotation or as a bias of distances, the first attention's input tells tokens and no
positions, and any token may stand anywhere. What the update says of a token's attended vector is free of positions too, so
the search has two parts: which tokens stand around a token, then in what order. Must not know labels, losses or how a
sentence is tested.

Scores depend on distances δ: the weight of a token v at distance δ from u is w_h(u, v, δ). With shares y(v, δ) ≥ 0 the
equations of ``span/encoder/attention_equations.py`` are solved around u at distance 0 (interior point): Σ_δ y(v, δ) counts v in the sentence.
The tokens being known, the share s_h(v) of each in each head follows from the same equations by least squares, linear and
without any position, and

    log s_h(v) − log s_h(u) = log w_h(u, v, δ) − log w_h(u, u, 0)

has one number per head for the one unknown δ; where v occurs more than once, shares of its copies add up. An assignment of tokens
to positions settles the distances together; exchanges of two positions energy_test what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from scipy.special import fdtri
from torch import Tensor

from gradleak.mechanics.probing.model import Model
from gradleak.models import Block
from gradleak.span.encoder.attention_equations import AttentionEquations, Pairs, attention_equations, enough_columns
from gradleak.span.encoder.subset_selection import Layout, select
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, ObservedLayer

_STEPS = 20
"""Interior-point steps per token; set by hand."""
_ORDERS = 3
"""Tokens whose shares are asked for an order before a content is given up; set by hand."""
_ANY_ORDERS = 8
"""Random orders to begin with where shares lead to none that stands out; set by hand."""
_COPIES = 4
"""Rounds in which copies of one word share its attention out among them."""
_NEVER = 1e6
_SAME = 1e-5
"""Relative difference below which queries or keys of two positions count as equal: rounding."""
_HARD = 1e3
"""How much stiffer a share must sum to one than an equation holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeSearch:
    """Sentences through one token after the other.

    Attributes:
        equations: over pairs (token, place) of a window of 2 · longest − 1 places; every token at every place, in one order.
    """

    equations: AttentionEquations
    layout: Layout
    tokens: Int64[Tensor, " tokens"]
    longest: int

    @staticmethod
    def of(
        model: Model,
        tokens: Int64[Tensor, " tokens"],
        block: Block,
        first: ObservedLayer,
        readers: Sequence[ObservedLayer],
        *,
        longest: int,
        rng: torch.Generator,
    ) -> RelativeSearch | None:
        """None where attention has no closed form, or depends on more than tokens and distances."""
        window = 2 * longest - 1
        if window > (model.subject.anatomy.max_positions or window):
            return None
        count = len(tokens)
        pairs = Pairs(
            tokens=tokens.repeat(window),
            places=torch.arange(window, device=tokens.device).repeat_interleave(count),
            at=tuple(torch.arange(count * window, device=tokens.device).split(count)),
        )
        columns = enough_columns(pairs.count, longest)
        equations = attention_equations(model, pairs, block, first, readers, columns=columns, rng=rng)
        if equations is None:
            return None
        return RelativeSearch(equations=equations, layout=Layout.around(pairs, longest), tokens=tokens, longest=longest)

    @property
    def ordered(self) -> bool:
        """Whether the first attention tells where a token stands at all."""
        equations, count = self.equations, len(self.tokens)
        still = [each.view(-1, count, *each.shape[1:]) for each in (equations.queries, equations.keys)]
        flat = equations.bias is None or bool((equations.bias == equations.bias[:1, :1]).all())
        return not (flat and all(bool((each - each[:1]).norm() <= _SAME * each.norm()) for each in still))

    def through(self, token: int) -> Tensor | None:
        """The sentence that fits the equations around a token, as numbers of tokens; None if none stands out."""
        counts = self.around(token)
        held = counts.nonzero().flatten()
        if not 1 <= int(counts.sum()) <= self.longest:
            return None
        content = held.repeat_interleave(counts[held])
        if not self.ordered:
            return content
        anchors = held[counts[held] == 1].tolist()
        anchors.sort(key=lambda each: each != token)
        best, least = None, torch.inf
        for start in self._starts(anchors[:_ORDERS], content):
            row, clear = self._polished(start)
            if clear and len(held) == len(content):
                return row
            value = float(self._misfit(row[None]))
            if value < least:
                # Words that occur more than once have orders far from each other that fit nearly alike: all starts are compared.
                best, least = row if clear else None, value
        return best

    def _starts(self, anchors: Sequence[int], content: Int64[Tensor, " length"]) -> Iterator[Int64[Tensor, " length"]]:
        """Orders to begin with: what the shares of some anchors tell; then, where that leads nowhere, any."""
        for anchor in anchors:
            yield self._ordered(anchor, content)
        rng = torch.Generator().manual_seed(0)
        for _ in range(_ANY_ORDERS):
            yield content[torch.randperm(len(content), generator=rng).to(content.device)]

    def around(self, token: int) -> Int64[Tensor, " tokens"]:
        """How often every token stands in the sentence around ``token``."""
        equations, count = self.equations, len(self.tokens)
        anchor = self.tokens.new_tensor([[(self.longest - 1) * count + token]])
        free = equations.target.new_zeros(equations.pairs.count)
        shares = select(equations, self.layout, anchor, cost=free, steps=_STEPS, judge=None).shares
        return shares[0].view(-1, count).sum(0).round().long()

    def _ordered(self, anchor: int, content: Int64[Tensor, " length"]) -> Int64[Tensor, " length"]:
        """The content in the order that the anchor's shares tell."""
        words, occurs = content.unique(return_counts=True)
        scores = self._scores(anchor, words)  # [words window heads]
        shares = self._shares(anchor, words, occurs, scores)
        own = int((words == anchor).nonzero())
        told = (shares / shares[own]).log().cpu()
        seen = (scores - scores[own, self.longest - 1]).cpu()
        rows = torch.arange(len(words)).repeat_interleave(occurs.cpu())
        size = len(content)
        # The anchor at ``place``: distances run from −place.
        tried = [
            _assigned(seen[rows, start : start + size], told[rows], rows, own=own, place=place)
            for place, start in ((p, self.longest - 1 - p) for p in range(size))
        ]
        _, order = min(tried, key=lambda one: one[0])
        return words[rows[order]]

    def _scores(self, anchor: int, words: Int64[Tensor, " words"]) -> Float[Tensor, "words window heads"]:
        equations, count = self.equations, len(self.tokens)
        places = torch.arange(len(equations.pairs.at), device=words.device)
        middle = (self.longest - 1) * count + anchor
        weights = equations.weights(words.new_tensor([middle]))[0].clamp(min=1e-300).log()
        return weights[places * count + words.unsqueeze(1)]

    def _shares(
        self, anchor: int, words: Tensor, occurs: Tensor, scores: Float[Tensor, "words window heads"]
    ) -> Float[Tensor, "words heads"]:
        """What each token gets of the anchor's attention in each head: nearest to the mean over distances that fits."""
        guess = scores.exp().mean(1) * occurs.unsqueeze(1)
        guess = guess / guess.sum(0)
        heads = guess.shape[1]
        middle = (self.longest - 1) * len(self.tokens)
        values = self.equations.values[middle + words]  # [words heads columns]
        system = (values * guess.unsqueeze(2)).flatten(0, 1).T
        whole = torch.eye(heads).to(guess).repeat(1, len(words)) * guess.flatten()
        system = torch.cat((system / self.equations.null, _HARD * whole))
        wanted = torch.cat(
            (self.equations.target[middle + anchor] / self.equations.null, _HARD * guess.new_ones(heads))
        )
        gap = wanted - system @ guess.new_ones(guess.numel())
        change = torch.linalg.pinv(system) @ gap
        return (guess * (1.0 + change.view_as(guess))).clamp(min=1e-12)

    def _misfit(self, rows: Int64[Tensor, "sentences length"]) -> Float[Tensor, " sentences"]:
        numbers = torch.arange(rows.shape[1], device=rows.device) * len(self.tokens) + rows
        return self.equations.residuals(numbers).square().clamp(min=1e-300).log().mean(1).exp()

    def _polished(self, row: Int64[Tensor, " length"]) -> tuple[Int64[Tensor, " length"], bool]:
        """Moves single tokens, exchanges two, or two words wherever they stand, until nothing helps, and whether the order then stands out.

        Errors of the equations count as independent, so the best order stands out if its misfit is below that of every
        neighbor by more than a quotient of two variances of as many terms would be by chance.
        """
        size = len(row)
        terms = size * self.equations.columns
        orders = _neighbors(size).to(row.device)
        value = float(self._misfit(row[None]))
        while True:
            trials = torch.cat((row[orders], _renamed(row)))
            trials = trials[(trials != row).any(1)]
            if not len(trials):
                return row, True
            values = self._misfit(trials)
            if not float(values.min()) < value:
                return row, float(values.min()) > value * fdtri(terms, terms, 1.0 - FALSE_ALARM_RATE)
            value, row = float(values.min()), trials[values.argmin()]


def _assigned(
    seen: Float[Tensor, "tokens places heads"],
    told: Float[Tensor, "tokens heads"],
    word: Int64[Tensor, " tokens"],
    *,
    own: int,
    place: int,
) -> tuple[float, Int64[Tensor, " places"]]:
    """The token at every place, and by how much shares are missed, if the anchor stands at ``place``.

    What copies of one word get adds up. So each copy is asked for what the others leave of the word's share; at first all copies
    count as if they stood together.

    Args:
        seen: logarithm of what a token gets at a place; told: of what its word gets, both beside the anchor's own.
        word: of each token; own: the anchor's.
    """
    alone, same = seen.exp(), word.unsqueeze(1) == word
    others = alone * (same.sum(1) - 1).view(-1, 1, 1)
    best, order = torch.inf, torch.arange(len(word))
    for _ in range(_COPIES):
        cost = ((alone + others).log() - told.unsqueeze(1)).square().sum(-1)
        cost[word == own] = torch.where(torch.arange(len(word)) == place, 0.0, _NEVER).to(cost)
        at = torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
        held = alone[torch.arange(len(word)), at]
        every = same.to(held) @ held
        value = float((every.log() - told).square().sum())
        if not value < best:
            break
        best, order = value, at.argsort()
        others = (every - held).unsqueeze(1)
    return best, order


def _neighbors(size: int) -> Int64[Tensor, "orders size"]:
    """Orders that differ by one exchange of two positions or by one token moved elsewhere."""
    orders: set[tuple[int, ...]] = set()
    for i in range(size):
        for j in range(size):
            swapped, moved = list(range(size)), list(range(size))
            swapped[i], swapped[j] = j, i
            moved.insert(j, moved.pop(i))
            orders |= {tuple(swapped), tuple(moved)}
    return torch.tensor(sorted(orders))


def _renamed(row: Int64[Tensor, " length"]) -> Int64[Tensor, "orders length"]:
    """Orders in which two words that occur equally often have changed places, all their copies at once."""
    words, number, occurs = row.unique(return_inverse=True, return_counts=True)
    one, other = torch.triu_indices(len(words), len(words), 1, device=row.device)
    alike = (occurs[one] == occurs[other]) & (occurs[one] > 1)
    one, other = one[alike].unsqueeze(1), other[alike].unsqueeze(1)
    return torch.where(number == one, words[other], torch.where(number == other, words[one], row))
