"""Attention over a sequence needs only the queries, keys and values of its tokens at their positions. They are made
once for every candidate (position, token); attention of any sequence of candidates is then a few inner products, and no
prefix is run through the model twice. Must not know gradients, spaces or how sequences are searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.closed_form import Projected, projections_by_law
from gradleak.mechanics.probing.probe import LargestTensor, StopForward, chunks, linear_inputs, run_quietly
from gradleak.models import Subject
from gradleak.models.running.interception import AttentionCall, intercepted

_TOLERANCE = 1e-4
"""Structure again: what is rebuilt agrees with the module to rounding (1e-6) or not at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """Queries, keys and values of the first attention, one row of candidates after the other.

    Row r holds one candidate per position; ``query[r, p]`` belongs to candidate r of position p.

    Attributes:
        bias: what is added to the score of a query position (first axis) at a key position, per head or for all.
    """

    query: Float[Tensor, "rows seq heads head_dim"]
    key: Float[Tensor, "rows seq kv_heads head_dim"]
    value: Float[Tensor, "rows seq kv_heads value_dim"]
    bias: Float[Tensor, "any seq seq"]
    scale: float
    soft_cap: float | None

    @property
    def width(self) -> int:
        """Length of the concatenated heads, the input of the attention's output map."""
        return self.query.shape[2] * self.value.shape[3]

    def since(self, start: int) -> Heads:
        """The same where sequences begin at position ``start``, behind padding that nothing attends to."""
        query, key, value = (tensor[:, start:] for tensor in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value, bias=self.bias[:, start:, start:])

    @property
    def groups(self) -> int:
        """Query heads that share one key and value head."""
        return self.query.shape[2] // self.key.shape[2]

    def extend(
        self, prefixes: Int64[Tensor, "prefixes before"], rows: Int64[Tensor, " extensions"]
    ) -> Float[Tensor, "prefixes extensions width"]:
        """What attention hands on at the position behind each prefix, for each candidate row there (causal models).

        Args:
            prefixes: candidate rows of the earlier positions, one sequence per line.
            rows: candidate rows at the next position.
        """
        weights, before = self.weights(prefixes, rows), prefixes.shape[1]
        old = self.value[prefixes, torch.arange(before, device=prefixes.device)].transpose(1, 2).unsqueeze(2)
        new = self.value[rows, before].transpose(0, 1).unsqueeze(1)  # [kv 1 extensions dim]
        attended = weights[..., :-1, :].transpose(-1, -2) @ old + weights[..., -1, :].unsqueeze(-1) * new
        return attended.flatten(1, 2).transpose(1, 2).flatten(2)

    def extend_each(
        self, prefixes: Int64[Tensor, "pairs before"], rows: Int64[Tensor, " pairs"]
    ) -> Float[Tensor, "pairs width"]:
        """The same for pairs of a prefix and a candidate row."""
        before = prefixes.shape[1]
        places = torch.arange(before + 1, device=prefixes.device)
        outputs = []
        for part in chunks(len(rows), 2 * (before + 1) * self.width):
            sequences = torch.cat((prefixes[part], rows[part].unsqueeze(1)), dim=1)
            query = self.query[rows[part], before].unflatten(1, (-1, self.groups))  # [pairs kv groups dim]
            scores = self._capped(query @ self.key[sequences, places].permute(0, 2, 3, 1) * self.scale)
            bias = self.bias[:, before, : before + 1]
            bias = bias.unflatten(0, scores.shape[1:3]) if len(bias) > 1 else bias
            weights = (scores + bias).softmax(dim=-1)
            outputs.append((weights @ self.value[sequences, places].transpose(1, 2)).flatten(1))
        return torch.cat(outputs) if outputs else self.value.new_zeros(0, self.width)

    def weights(
        self, prefixes: Int64[Tensor, "prefixes before"], rows: Int64[Tensor, " extensions"]
    ) -> Float[Tensor, "prefixes kv_heads groups keys extensions"]:
        """How much the last position behind each prefix attends to each position, the candidate's own last.

        Extensions are the last axis: a softmax over a short last axis costs ten times more.
        """
        before, shape = prefixes.shape[1], (self.key.shape[2], self.groups)
        query = self.query[rows, before].unflatten(1, shape)  # [extensions kv groups dim]
        own = (query * self.key[rows, before].unsqueeze(2)).sum(-1).permute(1, 2, 0).unsqueeze(2)
        # Per kv head: the keys of all prefixes against all queries of all extensions, one matrix product each.
        keys = self.key[prefixes, torch.arange(before, device=prefixes.device)]  # [prefixes before kv dim]
        old = keys.permute(2, 0, 1, 3).flatten(1, 2) @ query.permute(1, 3, 2, 0).flatten(2)
        old = old.view(shape[0], len(prefixes), before, shape[1], len(rows)).permute(1, 0, 3, 2, 4)
        scores = self._capped(torch.cat((old, own.expand(len(prefixes), -1, -1, -1, -1)), dim=3) * self.scale)
        bias = self.bias[:, before, : before + 1]
        bias = bias.unflatten(0, shape) if len(bias) > 1 else bias
        return (scores + bias.unsqueeze(-1)).softmax(dim=3)

    def project(
        self,
        prefixes: Int64[Tensor, "prefixes before"],
        rows: Int64[Tensor, " extensions"],
        columns: Float[Tensor, "width columns"],
    ) -> Float[Tensor, "prefixes extensions columns"]:
        """``extend(...) @ columns``, the columns folded into the values first: cheaper where they are few."""
        weights, before = self.weights(prefixes, rows), prefixes.shape[1]
        kv_heads, head_dim = self.value.shape[2:]
        folder = columns.view(kv_heads, self.groups, head_dim, -1)
        old = self.value[prefixes, torch.arange(before, device=prefixes.device)]
        old = torch.einsum("nphd,hgdc->nhgpc", old, folder).flatten(1, 3)
        new = torch.einsum("ehd,hgdc->ehgc", self.value[rows, before], folder).flatten(1, 2)
        products = weights[..., :-1, :].flatten(1, 3).transpose(1, 2) @ old
        return products + (weights[..., -1, :].permute(3, 0, 1, 2).flatten(2) @ new).transpose(0, 1)

    def _capped(self, scores: Tensor) -> Tensor:
        return scores if self.soft_cap is None else torch.tanh(scores / self.soft_cap) * self.soft_cap


def read_heads(
    subject: Subject, rows: Int64[Tensor, "rows seq"], *, parameters: Mapping[str, Tensor] | None = None
) -> Heads | None:
    """The first attention's queries, keys and values for rows of candidates, one pass over the first projections.

    Returns:
        None if the subject's attention cannot be intercepted, or does more than softmax attention with what is handed
        to it (checked on the first rows against the module itself).
    """

    def project(rows: Tensor) -> Projected | None:
        calls = _calls(subject, rows, parameters, needed.numel)
        if calls is None:
            return None
        return (
            torch.cat([call.query.transpose(1, 2) for call in calls]),
            torch.cat([call.key.transpose(1, 2) for call in calls]),
            torch.cat([call.value.transpose(1, 2) for call in calls]),
        )

    with LargestTensor() as needed:
        first = _calls(subject, rows[:1], parameters)
    maps = [linear_map.module for linear_map in subject.anatomy.blocks[0].readers_of_input()]
    projected = (projections_by_law(subject, maps, rows, project, parameters) or project(rows)) if first else None
    if first is None or projected is None:
        return None
    heads = Heads(
        query=projected[0],
        key=projected[1],
        value=projected[2],
        bias=_bias_of(first[0], rows.shape[1]),
        scale=first[0].scale,
        soft_cap=first[0].soft_cap,
    )
    return heads if _is_faithful(heads, subject, rows, parameters) else None


def relative_rotations(
    subject: Subject, *, length: int, rng: torch.Generator
) -> Float[Tensor, "length head_dim head_dim"] | None:
    """R_d with key(token, position p) = R_p · key(token, first position), read off the keys of random tokens.

    The identity where keys do not turn; None if keys are no linear function of their first position's, as where the
    position enters the layer's input.
    """
    width = subject.anatomy.hidden_size // subject.anatomy.blocks[0].heads
    tokens = torch.randint(subject.anatomy.vocab_size, (4 * width, 1), generator=rng)
    heads = read_heads(subject, tokens.expand(-1, length))
    if heads is None:
        return None
    keys = heads.key.transpose(1, 2).flatten(0, 1).double()
    turned = torch.linalg.lstsq(keys[:, 0], keys.flatten(1)).solution.unflatten(1, (length, -1))
    if not bool((torch.einsum("nd,dle->nle", keys[:, 0], turned) - keys).norm() <= _TOLERANCE * keys.norm()):
        return None
    return turned.permute(1, 2, 0)


def _calls(
    subject: Subject, rows: Tensor, parameters: Mapping[str, Tensor] | None, needed: int = 0
) -> list[AttentionCall] | None:
    """What the first attention is called with for all rows, some at a time; None if it is not called through the library.

    Args:
        needed: numbers in the largest tensor that the model makes of a row, as far as that is known.
    """
    calls: list[AttentionCall] = []

    def keep(call: AttentionCall) -> None:
        calls.append(call)
        raise StopForward

    with intercepted(subject.module, keep):
        for part in chunks(len(rows), max(needed, 4 * subject.anatomy.hidden_size * rows.shape[1])):
            before = len(calls)
            run_quietly(subject, rows[part], parameters=parameters)
            if len(calls) == before:
                return None
    return calls


def _bias_of(call: AttentionCall, seq: int) -> Tensor:
    return call.query.new_zeros(1, seq, seq) if call.bias is None else call.bias[0, :, :seq, :seq].to(call.query.dtype)


def _is_faithful(heads: Heads, subject: Subject, rows: Tensor, parameters: Mapping[str, Tensor] | None) -> bool:
    """Whether the last position of the first row gets from ``extend`` what the module's own attention hands on."""
    output = subject.anatomy.blocks[0].attention_output
    if output.in_features != heads.width:
        return False
    seen = linear_inputs(subject, (output.module,), rows[:1], parameters=parameters)[output.module][0, -1]
    first = torch.zeros(1, rows.shape[1] - 1, dtype=torch.int64, device=rows.device)
    extended = heads.extend(first, first.new_zeros(1))[0, 0]
    return bool((extended - seen).norm() <= _TOLERANCE * seen.norm())
