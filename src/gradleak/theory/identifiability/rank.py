"""How many dimensions the first layer's inputs span, and which wrong (token, position) pairs lie in that span too,
follow from the batch as a graph. No model is run.

The graph G joins token v with position p if v stands at p in some record: T tokens, P positions, c components, U edges
(distinct pairs). Its incidence matrix M has a row e_v + e_p per edge. With inputs x_vp = N(w_v + p_p):

    no bias in N      rank X = rank M = T + P − c                                         (up to the width)
    with a bias       rank X = min(U, T + P − c + 1): one more as soon as G has a cycle
    rotary or none    rank X = T: positions do not enter

Ambiguity: a pair (v, p) lies in the span iff v and p are in one component, except with a bias on a forest, where only the
pairs of the batch do. ``docs/theory/rank-law.md`` has the proofs. Must not know models or gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """A connected part of the token-position graph.

    Attributes:
        tokens, positions: how many of each.
        pairs: edges, the pairs that are in the batch.
    """

    tokens: int
    positions: int
    pairs: int

    @property
    def cycles(self) -> int:
        """Independent cycles: edges beyond a spanning tree."""
        return self.pairs - (self.tokens + self.positions - 1)

    @property
    def indistinguishable(self) -> int:
        """Pairs of a token and a position of this component, whether in the batch or not."""
        return self.tokens * self.positions


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPositionGraph:
    """What the first layer's inputs of a batch are made of.

    Attributes:
        positional: whether the position enters the input; if not there are no position nodes.
        components: largest first. Where positions do not enter, one per token.
        pair_of: per place ``[batch seq]`` the number of its distinct input, −1 for padding.
        token_of, position_of: per distinct input, the numbers of its two nodes.
    """

    positional: bool
    components: tuple[Component, ...]
    pair_of: Int64[Tensor, "batch seq"]
    token_of: Int64[Tensor, " pairs"]
    position_of: Int64[Tensor, " pairs"]

    @property
    def tokens(self) -> int:
        return sum(component.tokens for component in self.components)

    @property
    def positions(self) -> int:
        return sum(component.positions for component in self.components)

    @property
    def pairs(self) -> int:
        return sum(component.pairs for component in self.components)

    @property
    def forest(self) -> bool:
        return not self.positional or all(component.cycles == 0 for component in self.components)

    def rank(self, *, bias: bool) -> int:
        """Dimensions that the inputs span if the layer is wide enough.

        Args:
            bias: whether the normalization before the layer adds a constant vector.
        """
        if not self.positional:
            return self.tokens
        free = self.tokens + self.positions - len(self.components)
        return min(self.pairs, free + 1) if bias else free

    def indistinguishable(self, *, bias: bool) -> int:
        """Pairs of the batch's tokens and positions in the span: those of the batch and those that only look so."""
        if not self.positional:
            return self.tokens * self.pair_of.shape[1]
        if bias and self.forest:
            return self.pairs
        return sum(component.indistinguishable for component in self.components)


def token_position_graph(
    ids: Int64[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    positional: bool,
    within: Bool[Tensor, "batch seq"] | None = None,
) -> TokenPositionGraph:
    """The graph of a batch, or of those of its places that are in ``within``."""
    taken = mask if within is None else mask & within
    rows, columns = taken.nonzero(as_tuple=True)
    tokens, token_number = ids[rows, columns].unique(return_inverse=True)
    places = columns if positional else torch.zeros_like(columns)
    width = ids.shape[1]
    pairs, pair_number = (token_number * width + places).unique(return_inverse=True)
    pair_of = torch.full_like(ids, -1)
    pair_of[rows, columns] = pair_number
    token_of, position_of = pairs // width, pairs % width
    return TokenPositionGraph(
        positional=positional,
        components=_components(token_of, position_of, len(tokens), positional=positional),
        pair_of=pair_of,
        token_of=token_of,
        position_of=position_of,
    )


def _components(token_of: Tensor, position_of: Tensor, tokens: int, *, positional: bool) -> tuple[Component, ...]:
    if not positional:
        return tuple(Component(tokens=1, positions=0, pairs=1) for _ in range(tokens))
    used, position_number = position_of.unique(return_inverse=True)
    size = tokens + len(used)
    edges = (token_of.numpy(), tokens + position_number.numpy())
    graph = coo_matrix((np.ones(len(token_of)), edges), shape=(size, size))
    count, label = connected_components(graph, directed=False)
    components = [
        Component(
            tokens=int((label[:tokens] == component).sum()),
            positions=int((label[tokens:] == component).sum()),
            pairs=int((label[edges[0]] == component).sum()),
        )
        for component in range(count)
    ]
    return tuple(sorted(components, key=lambda component: component.pairs, reverse=True))


def coordinates(graph: TokenPositionGraph, *, bias: bool, normalized: bool = True) -> Float[Tensor, "pairs dimensions"]:
    """Every distinct input in the basis of token vectors, position vectors and the bias.

    Args:
        normalized: whether every input has a scale 1/σ of its own. The scales are drawn at random: that they are in no
            special relation is all that the laws use.
    """
    count = len(graph.token_of)
    parts = [torch.nn.functional.one_hot(graph.token_of).double()]
    if graph.positional:
        parts.append(torch.nn.functional.one_hot(graph.position_of).double())
    rows = torch.cat(parts, dim=1)
    if normalized:
        rng = torch.Generator().manual_seed(0)
        rows = rows * (torch.rand(count, 1, generator=rng, dtype=torch.float64) + 0.5)
    return torch.cat((rows, torch.ones(count, 1, dtype=torch.float64)), dim=1) if bias else rows
