"""Reads what a transformer is made of from its data flow, so that a new architecture needs no new line here.

The rules, in terms of a forward cut at every linear map:

    attention output    its input is reached through a softmax over positions with no other map between
    attention inputs    the maps that feed it and read one tensor; of these, *values* arrive without crossing the softmax,
                        *queries* influence only their own position, and *gates* do both
    latent maps         what feeds it behind such maps, where the attention's input is compressed first
    heads               the score matrices that the softmax makes of one record
    block               the smallest module that holds an attention output and maps beside the attention's own; where
                        there are none (experts keep theirs in stacks), the largest that holds no other attention
    mlp output, inputs  a map of the block fed only by such other maps, and the maps that feed it
    head                the map that makes the logits

Must not know a model's type, class or checkpoint name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gradleak.core.errors import ModelError
from gradleak.models.anatomy import Adapter, Anatomy, Block, Kind, LinearMap
from gradleak.models.calling import reads_pixels, token_embedding, weight_of
from gradleak.models.reading.adapters import adapter_calls
from gradleak.models.reading.first_attention import read_entrance
from gradleak.models.reading.positions import read_positions
from gradleak.models.running.attention import differentiable, sample_inputs
from gradleak.models.running.tracing import Call, Trace, influence_on, same_input, trace
from gradleak.models.silence import one_line

_FOREIGN = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ImportError, AssertionError)
"""What another library's forward raises when it is not called as it wants."""


def read_anatomy(module: nn.Module) -> Anatomy:
    """Reads the anatomy of a Hugging Face transformer with one tiny forward (a few more for the kind of positions).

    The module is left as it was: same mode, same attention kernel, no hooks.

    Raises:
        ModelError: if the module is no transformer of one stack, or has parts that the rules cannot tell apart.
    """
    _check_supported(module)
    with differentiable(module):
        try:
            run = trace(module, sample_inputs(module))
            pairs = adapter_calls(run)
            if pairs:
                thin = {call.path for _, down, up in pairs for call in (down, up)}
                run = trace(module, sample_inputs(module), severed=thin)
        except _FOREIGN as error:
            raise ModelError(
                f"{type(module).__name__} could not be run on a sample input: {one_line(error)} "
                "gradleak reads single-stack transformers of the Hugging Face library."
            ) from error
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        blocks = _read_blocks(module, run, names)
        vision = reads_pixels(module)
        adapters = tuple(
            Adapter(target=target.path, down=_map_of(down, names), up=_map_of(up, names)) for target, down, up in pairs
        )
        positions = read_positions(module, run, blocks[0], names, adapters)
        head = _read_head(run, names)
        entrance, followers = read_entrance(run, run.calls[blocks[0].attention_inputs[0].module])
        table = None if vision else weight_of(token_embedding(module))
        return Anatomy(
            kind="vision" if vision else _direction(run.calls[blocks[0].attention_output.module], run),
            token_embedding=None if table is None else names[id(table)],
            position_embedding=positions.table,
            position_kind=positions.kind,
            blocks=blocks,
            head=head,
            tied=head is not None and table is not None and head.weight == names[id(table)],
            per_token=(run.logits is not None and run.logits.ndim == 3) or _classifies_every_token(run, head),
            hidden_size=blocks[0].attention_output.out_features,
            vocab_size=0 if table is None else table.shape[0],
            max_positions=positions.longest,
            adapters=adapters,
            entrance=_maps(entrance, names),
            followers=tuple(_maps(group, names) for group in followers),
        )


def _check_supported(module: nn.Module) -> None:
    config = getattr(module, "config", None)
    if config is None:
        raise ModelError(
            f"{type(module).__name__} has no Hugging Face configuration. "
            "Pass a PreTrainedModel with a text or image transformer inside."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(module).__name__} is an encoder-decoder; gradleak reads models of one stack (decoder, encoder, ViT)."
        )


def linear_map(path: str, module: nn.Module, names: dict[int, str]) -> LinearMap:
    """The linear map that a module applies. ``names`` maps a parameter's identity to its name."""
    weight = weight_of(module)
    bias = module.bias
    input_first = isinstance(module, Conv1D)
    rows, columns = weight.shape
    return LinearMap(
        module=path,
        weight=names[id(weight)],
        bias=names[id(bias)] if isinstance(bias, Tensor) else None,
        in_features=rows if input_first else columns,
        out_features=columns if input_first else rows,
        input_first=input_first,
    )


def _map_of(call: Call, names: dict[int, str]) -> LinearMap:
    return linear_map(call.path, call.module, names)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attention:
    """``inputs`` read the attention's input: queries, keys, values, in this order; ``gates`` too."""

    inputs: tuple[Call, ...]
    gates: tuple[Call, ...]
    latent: tuple[Call, ...]
    output: Call

    def paths(self) -> set[str]:
        return {call.path for call in (*self.inputs, *self.gates, *self.latent, self.output)}


def _read_blocks(module: nn.Module, run: Trace, names: dict[int, str]) -> tuple[Block, ...]:
    attentions = [_read_attention(call, run) for call in run.calls.values() if _mixes_positions(call, run)]
    if not attentions:
        raise ModelError(f"{type(module).__name__} has no linear map behind a softmax, so no attention to read.")
    taken: set[str] = set().union(*(attention.paths() for attention in attentions))
    return tuple(_read_block(module, run, attention, taken, names) for attention in attentions)


def _mixes_positions(call: Call, run: Trace) -> bool:
    """A softmax over positions, not over experts: one position of what the map reads depends on several of what was made."""
    crossed = (run.calls[path].made for path, softmax in call.feeders if softmax)
    return any(int(influence_on(call.read, made, position=-1).sum()) > 1 for made in crossed)


def _read_attention(output: Call, run: Trace) -> _Attention:
    direct = _feeding(output, run)
    # Maps of something else than the tokens (relative positions, say) feed attention too: keep the maps that read the one
    # tensor through which most of what feeds attention passes, directly or compressed.
    readers = max(_readers_of_one(direct, run), key=lambda group: (_passing(direct, group), len(_among(group, direct))))
    latent = [call for call in direct if call not in readers and _is_behind(call, readers)]
    gates = [call for call in _among(readers, direct) if _is_gate(call, output)]
    inputs = [call for call in readers if call not in gates or (call.path, True) in output.feeders]
    if len(inputs) > 3:
        paths = ", ".join(call.path for call in inputs)
        raise ModelError(
            f"The attention before {output.path!r} has {len(inputs)} input maps ({paths}); at most 3 are understood."
        )

    places = list(run.calls)

    def in_order(calls: list[Call]) -> tuple[Call, ...]:
        return tuple(sorted(calls, key=lambda call: (_rank(call, output), places.index(call.path))))

    return _Attention(inputs=in_order(inputs), gates=tuple(gates), latent=in_order(latent), output=output)


def _feeding(call: Call, run: Trace) -> list[Call]:
    paths = {path for path, _ in call.feeders}
    return [each for path, each in run.calls.items() if path in paths]


def _readers_of_one(direct: list[Call], run: Trace) -> list[list[Call]]:
    """The maps that feed attention, and those that feed them, in groups that read one and the same tensor."""
    groups: list[list[Call]] = []
    behind = [each for call in direct for each in _feeding(call, run)]
    for call in dict.fromkeys([*direct, *behind]):
        for group in groups:
            if same_input(call, group[0]):
                group.append(call)
                break
        else:
            groups.append([call])
    return groups


def _passing(direct: list[Call], group: list[Call]) -> int:
    return sum(call in group or _is_behind(call, group) for call in direct)


def _among(group: list[Call], direct: list[Call]) -> list[Call]:
    return [call for call in group if call in direct]


def _is_behind(call: Call, group: list[Call]) -> bool:
    """Whether all that the map reads comes from these maps, with no softmax between."""
    return bool(call.feeders) and call.feeders <= {(each.path, False) for each in group}


def _is_gate(call: Call, output: Call) -> bool:
    """Whether the map's result reaches the output without a softmax, and only at its own position."""
    return (call.path, False) in output.feeders and not _reaches_others(call, output)


def _reaches_others(call: Call, output: Call) -> bool:
    return bool(influence_on(output.read, call.made, position=-1)[:-1].any())


def _rank(call: Call, output: Call) -> int:
    """0 for queries, 1 for keys, 2 for values (a compressed input counts as what it becomes)."""
    if not any(path == call.path for path, _ in output.feeders):
        return 1
    if not _reaches_others(call, output):
        return 0
    return 2 if (call.path, False) in output.feeders else 1


def _direction(output: Call, run: Trace) -> Kind:
    """A decoder if the first position of the attention's result depends on no later one."""
    feeders = {path for path, _ in output.feeders}
    ahead = (influence_on(output.read, run.calls[path].made, position=0)[1:].any() for path in feeders)
    return "encoder" if any(bool(seen) for seen in ahead) else "decoder"


def _read_block(module: nn.Module, run: Trace, attention: _Attention, taken: set[str], names: dict[int, str]) -> Block:
    prefix, rest = _surroundings(run, attention, taken)
    mlp_output = next(
        (call for call in reversed(rest) if call.feeders and {p for p, _ in call.feeders} <= {c.path for c in rest}),
        None,
    )
    sources = set() if mlp_output is None else {path for path, _ in mlp_output.feeders}
    heads, kv_heads = _count_heads(attention)
    return Block(
        path=prefix,
        attention_inputs=_maps(attention.inputs, names),
        fused=len(attention.inputs) == 1 and not attention.latent,
        attention_output=linear_map(attention.output.path, attention.output.module, names),
        mlp_inputs=_maps((call for call in rest if call.path in sources), names),
        mlp_output=None if mlp_output is None else _map_of(mlp_output, names),
        norms=_norms(module, prefix),
        heads=heads,
        kv_heads=kv_heads,
        latent=_maps(attention.latent, names),
        gates=_maps(attention.gates, names),
    )


def _maps(calls: Iterable[Call], names: dict[int, str]) -> tuple[LinearMap, ...]:
    return tuple(linear_map(call.path, call.module, names) for call in calls)


def _surroundings(run: Trace, attention: _Attention, taken: set[str]) -> tuple[str, Sequence[Call]]:
    """The block's path and its maps that belong to no attention."""
    parts = attention.output.path.split(".")
    largest = attention.output.path
    for depth in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:depth])
        inside = [call for path, call in run.calls.items() if path.startswith(f"{prefix}.")]
        if {call.path for call in inside} & (taken - attention.paths()):
            break
        rest = [call for call in inside if call.path not in taken]
        if rest:
            return prefix, rest
        largest = prefix
    return largest, []


def _norms(module: nn.Module, prefix: str) -> tuple[str, ...]:
    """Modules without children whose parameters are all vectors: what a normalization looks like."""
    found = []
    for path, child in module.get_submodule(prefix).named_modules(prefix=prefix):
        own = list(child.parameters(recurse=False))
        if own and all(parameter.ndim == 1 for parameter in own) and not list(child.children()):
            found.append(path)
    return tuple(found)


def _count_heads(attention: _Attention) -> tuple[int, int]:
    heads = attention.output.heads
    width = attention.output.read.shape[-1]
    if width % heads:
        raise ModelError(f"The attention width {width} is no multiple of its {heads} heads.")
    if attention.latent:
        return heads, heads
    widths = [call.made.shape[-1] for call in attention.inputs]
    # Values have a map of their own, or everything that is not a query is keys and values, half and half.
    shared = widths[2] if len(widths) == 3 else (sum(widths) - width) / 2
    kv_heads, odd = divmod(shared, width // heads)
    if odd or kv_heads < 1 or heads % kv_heads:
        raise ModelError(
            f"The attention input maps make {widths} features, which do not divide into {heads} query heads of "
            f"{width // heads} and as many keys as values."
        )
    return heads, int(kv_heads)


def _read_head(run: Trace, names: dict[int, str]) -> LinearMap | None:
    if run.logits is None:
        return None
    last = list(run.calls.values())[-1]
    if last.made.shape[-1] != run.logits.shape[-1]:
        raise ModelError(
            f"The last linear map {last.path!r} makes {last.made.shape[-1]} features but the model returns "
            f"{run.logits.shape[-1]} logits; its head is no plain linear map."
        )
    return linear_map(last.path, last.module, names)


def _classifies_every_token(run: Trace, head: LinearMap | None) -> bool:
    """True if the head reads the backbone's last hidden states as they are, all of them."""
    if head is None or run.hidden is None:
        return False
    read = run.calls[head.module].read
    return read.shape == run.hidden.shape and torch.equal(read, run.hidden)
