"""Attacks and theory speak of "the query projection" or "the head", never of a checkpoint's module names.

This page of nouns says what a transformer is made of. Must not know how it is found (``reading``) or any attack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Kind = Literal["decoder", "encoder", "vision"]
PositionKind = Literal["learned", "rotary", "alibi", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearMap:
    """A weight matrix seen as a linear map ``y = W x (+ b)``.

    Attributes:
        module: path of the module that applies it.
        weight: parameter name, as in ``named_parameters()``; for a tied head, the name of the token embedding.
        bias: parameter name, or None.
        in_features: length of ``x``.
        out_features: length of ``y``.
        input_first: True if the weight is stored ``[in, out]``, False if ``[out, in]``.
    """

    module: str
    weight: str
    bias: str | None
    in_features: int
    out_features: int
    input_first: bool

    def as_matrix(self, stored: Float[Tensor, "rows columns"]) -> Float[Tensor, "out_features in_features"]:
        """A tensor of the weight's shape (the weight, or its gradient) as ``W``, output axis first."""
        return stored.T if self.input_first else stored


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One attention and its feed-forward part.

    Attributes:
        path: the module that holds them.
        attention_inputs: every projection of the attention's input: ``(qkv,)``, ``(q, kv)`` or ``(q, k, v)``; of latent
            attention the maps that compress it.
        fused: True if one map makes queries, keys and values together.
        latent: of latent attention, the maps from a compressed input to queries, keys and values; empty otherwise.
        gates: maps of the same input whose result multiplies what attention makes; a map that makes queries and gates
            together stands in both places.
        attention_output: the map after the attention-weighted sum.
        mlp_inputs: ``(fc,)`` or, for gated units, ``(gate, up)`` in the order in which they run; empty where the
            feed-forward part is no pair of linear maps (a mixture of experts).
        mlp_output: the map back to the residual stream, or None.
        norms: module paths of the normalizations inside the block.
        heads: query heads.
        kv_heads: key and value heads; fewer than ``heads`` in grouped-query attention.
    """

    path: str
    attention_inputs: tuple[LinearMap, ...]
    fused: bool
    attention_output: LinearMap
    mlp_inputs: tuple[LinearMap, ...]
    mlp_output: LinearMap | None
    norms: tuple[str, ...]
    heads: int
    kv_heads: int
    latent: tuple[LinearMap, ...] = ()
    gates: tuple[LinearMap, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether queries, keys and values are made of the input by one linear map each, and nothing else shapes the result."""
        return not self.latent and not self.gates

    def maps(self) -> tuple[LinearMap, ...]:
        """Every linear map of the block, attention first."""
        made = (*self.attention_inputs, *self._own_gates(), *self.latent, self.attention_output, *self.mlp_inputs)
        return made if self.mlp_output is None else (*made, self.mlp_output)

    def readers_of_input(self) -> tuple[LinearMap, ...]:
        """Every map that reads the attention's input."""
        return (*self.attention_inputs, *self._own_gates())

    def scoring(self) -> tuple[LinearMap, ...]:
        """Maps without which no score depends on a token; a fused map makes the values, too."""
        if self.fused:
            return self.attention_inputs
        if not self.latent:
            return self.attention_inputs[:2]
        return self.latent[:1] if len(self.latent) > 1 else self.attention_inputs[:1]

    def _own_gates(self) -> tuple[LinearMap, ...]:
        return tuple(each for each in self.gates if each not in self.attention_inputs)

    def behind_attention(self) -> tuple[LinearMap, ...]:
        """The maps whose inputs follow from what the attention made: its output, and the feed-forward part's first."""
        return (self.attention_output, *self.mlp_inputs[:1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A low-rank correction ``B A x`` (up to a factor) that is added to what a linear map makes of ``x``.

    Attributes:
        target: module path of the linear map that is corrected.
        down: ``A``, ``[rank in_features]``.
        up: ``B``, ``[out_features rank]``.
    """

    target: str
    down: LinearMap
    up: LinearMap

    @property
    def rank(self) -> int:
        return self.down.out_features


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """What a transformer is made of.

    Attributes:
        kind: ``decoder`` if no position sees a later one, ``encoder`` if it does, ``vision`` if it reads pixels.
        token_embedding: parameter name, or None for vision.
        position_embedding: parameter name of the learned table, or None.
        position_kind: how attention learns about order; ``alibi`` stands for any bias added to its scores.
        blocks: in the order in which they run. Blocks that share all weights are listed once.
        head: the last linear map, which makes the logits; None if the module has no head.
        tied: True if the head's weight is the token embedding.
        per_token: True if the head is applied to every token; a classifier then picks the last real token afterwards.
        hidden_size: width of the residual stream.
        vocab_size: rows of the token embedding; 0 for vision.
        max_positions: longest input the positions allow, or None if unlimited.
        adapters: low-rank corrections of linear maps, in the order in which they run.
        entrance: of a hybrid model, the maps that read the tokens before anything mixes positions; empty where the first
            block's attention does.
        followers: the groups of maps that come next behind the entrance; empty as the entrance.
    """

    kind: Kind
    token_embedding: str | None
    position_embedding: str | None
    position_kind: PositionKind
    blocks: tuple[Block, ...]
    head: LinearMap | None
    tied: bool
    per_token: bool
    hidden_size: int
    vocab_size: int
    max_positions: int | None
    adapters: tuple[Adapter, ...] = ()
    entrance: tuple[LinearMap, ...] = ()
    followers: tuple[tuple[LinearMap, ...], ...] = ()

    def first_maps(self) -> tuple[LinearMap, ...]:
        """Every map of the first layer whose input depends on one token and its position only."""
        return self.entrance or self.blocks[0].readers_of_input()

    def maps_behind(self) -> tuple[tuple[LinearMap, ...], ...]:
        """The groups of maps of the first two blocks that read what the first layer made, nearest first."""
        if self.entrance:
            return self.followers
        first, *more = self.blocks[:2]
        near = ((first.attention_output,), first.mlp_inputs)
        return near + tuple(
            group for b in more for group in (b.readers_of_input(), (b.attention_output,), b.mlp_inputs)
        )

    def adapters_of(self, maps: tuple[LinearMap, ...]) -> tuple[Adapter, ...]:
        """The adapters that correct one of ``maps``."""
        targets = {each.module for each in maps}
        return tuple(adapter for adapter in self.adapters if adapter.target in targets)
