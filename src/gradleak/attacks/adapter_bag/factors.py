"""The two thin factors of low-rank adapters as sums over tokens. ``mechanics.subspace.adapters`` reads the layer's own input off them;
here is what they hold, less expected, about the *other* tokens of the record.

    y = W x + s B A x,   δ_t = dL/dy_t,   dL/dB = s Σ_t δ_t (A x_t)ᵀ

    For a query map, δ^q_t = Σ_s dS_ts k_s / √head_dim with Σ_s dS_ts = 0 (a row of a softmax), and for a key map
    δ^k_s = Σ_t dS_ts q_t / √head_dim. So per head h, with s, t in one record,

        columns of dL/dB_q ⊂ span{W_k,h (x_s − x_s')},      columns of dL/dB_k ⊂ span{W_q,h x_t + b_q,h}:

    at B = 0 the *left* factor of the query adapter is a sum over the keys, and that of the key adapter one of the queries.
    With rotary positions each vector is turned by the distance of the pair; slow dimensions hardly move.

Must not know attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.attacks.adapter_bag.bag import Family
from gradleak.models import Adapter, Anatomy, Block, LinearMap


def adapter_families(
    update: Mapping[str, Tensor],
    anatomy: Anatomy,
    parameters: Mapping[str, Tensor],
    rotations: Float[Tensor, "length head_dim head_dim"] | None = None,
) -> tuple[Family, ...]:
    """What the first block's attention adapters tell about the tokens of a batch of any size, for ``bag.find_bag``.

    The stacked rows of dL/dA, where they are not zero, and the left factors of the query and key adapters, head by head.
    In a model without adapters, the gradients of the attention's own projections, which are sums of inputs too.

    Args:
        rotations: R_d by which a key (and a query) turns over a distance of d positions; None where none turns.
    """
    block = anatomy.blocks[0]
    adapters = {a.target: a for a in anatomy.adapters_of(block.attention_inputs)}
    families = [*_input_family(update, tuple(a.down for a in adapters.values()) or block.attention_inputs)]
    if not block.plain:
        # Latent or gated attention: its maps are not queries and keys of the layer's input.
        return tuple(families)
    parts = _parts(block)
    for mine, other in ((0, 1), (1, 0)):
        own, read = parts[mine], parts[other]
        adapter = adapters.get(own.map.module)
        if adapter is not None and adapter.up.weight in update and bool(update[adapter.up.weight].any()):
            left = _left_family(update, adapter, own, read, block, parameters, centered=mine == 0)
            # A key stands before the query that reads it, by d: seen from the query it is turned back.
            turns = None if rotations is None else rotations.transpose(1, 2) if mine == 0 else rotations
            families.append(left if turns is None else _coherent(left, turns))
    return tuple(families)


def _coherent(family: Family, turns: Float[Tensor, "length rows rows"]) -> Family:
    """The family in those rows in which vectors of one token at different distances still add up.

    Over the distances d of a record, Σ_d ω_d R_d keeps a share s² of the energy of a direction; the rest looks like noise.
    Directions that keep less than half are left out. ω_d = Σ_{t > d} (t − 1)/t³, the energy under uniform attention.
    """
    t = torch.arange(1, len(turns) + 1, dtype=torch.float64)
    energy = ((t - 1) / t**3).flip(0).cumsum(0).flip(0)
    mean = torch.einsum("d,dij->ij", energy / energy.sum(), turns.double())
    left, kept, _ = torch.linalg.svd(mean)
    chosen = left[:, kept.square() > 0.5]
    dtype = family.weights.dtype
    return replace(
        family,
        weights=((chosen.T @ mean) @ family.weights.double()).to(dtype),
        offsets=(family.offsets.double() @ mean.T @ chosen).to(dtype),
        sums=(chosen.T @ family.sums.double()).to(family.sums.dtype),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The rows of a linear map that make queries (first) or keys (second)."""

    map: LinearMap
    rows: slice
    heads: int


def _parts(block: Block) -> tuple[_Part, _Part]:
    width = block.attention_output.in_features
    keys = width // block.heads * block.kv_heads
    maps = block.attention_inputs
    if block.fused:
        query, key = (maps[0], slice(0, width)), (maps[0], slice(width, width + keys))
    else:
        query, key = (maps[0], slice(0, width)), (maps[1], slice(0, keys))
    return (
        _Part(map=query[0], rows=query[1], heads=block.heads),
        _Part(map=key[0], rows=key[1], heads=block.kv_heads),
    )


def _input_family(update: Mapping[str, Tensor], maps: tuple[LinearMap, ...]) -> tuple[Family, ...]:
    """The gradients of maps that read the layer's input, as sums of inputs."""
    rows = [gradient.as_matrix(update[gradient.weight]) for gradient in maps if gradient.weight in update]
    rows = [gradient for gradient in rows if bool(gradient.any())]
    if not rows:
        return ()
    sums = torch.cat(rows).T
    features = sums.shape[0]
    return (
        Family(
            weights=torch.eye(features, dtype=sums.dtype, device=sums.device).unsqueeze(0),
            offsets=sums.new_zeros(1, features),
            sums=sums.unsqueeze(0),
            own=None,
            centered=False,
        ),
    )


def _left_family(
    update: Mapping[str, Tensor],
    adapter: Adapter,
    own_part: _Part,
    read_part: _Part,
    block: Block,
    parameters: Mapping[str, Tensor],
    *,
    centered: bool,
) -> Family:
    """The up-gradient of queries as sums of keys, or of keys as sums of queries, one sum per pair of heads."""
    sums = adapter.up.as_matrix(update[adapter.up.weight])[own_part.rows].unflatten(0, (own_part.heads, -1))
    weight = _value(parameters, read_part.map)[read_part.rows].unflatten(0, (read_part.heads, -1))
    bias = (
        weight.new_zeros(weight.shape[:2])
        if read_part.map.bias is None
        else parameters[read_part.map.bias].detach()[read_part.rows].unflatten(0, (read_part.heads, -1))
    )
    # Grouped queries: several query heads share one key head.
    repeats = block.heads // block.kv_heads
    if centered:
        weight, bias = (tensor.repeat_interleave(repeats, dim=0) for tensor in (weight, bias))
    else:
        sums = sums.repeat_interleave(repeats, dim=0)
    return Family(weights=weight, offsets=bias, sums=sums, own=_value(parameters, adapter.down), centered=centered)


def _value(parameters: Mapping[str, Tensor], linear_map: LinearMap) -> Tensor:
    return linear_map.as_matrix(parameters[linear_map.weight].detach())
