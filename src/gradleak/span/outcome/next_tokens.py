"""Under a causal language-model loss the head's gradient holds the next token of every context, the last token of a record among
them, and how often each context stands in the batch. Must not know how the contexts were found.

A context c is the beginning of a record. With h_c what the head reads at its end, p_c the softmax there, n_c the number of records that
begin with c, m_c(y) the number of those that go on with y, and N the number of targets in the batch,

    N · G_head = Σ_c (n_c p_c − m_c) h_cᵀ,

linear in the columns, which follow by the pseudo-inverse of the h_c while they are independent. Nearly all entries of a column are
n_c p_c, so that n_c is the median of their ratio to p_c, and m_c what is missing; Σ n_c over contexts of one token is the batch size, which
gives N. A record ends in y behind c as often as m_c(y) exceeds n_(c,y).

Where the head is the token table, rows of tokens that some position reads hold more. There m_c(y) is not read, and what n_c leaves for such
tokens is looked up in the gradient of the last map before the head: with a_c its input, Σ_c δ_c a_cᵀ with δ_c = Jᵀ (p_c − e_y).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import LinearMap, Subject

Context = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What was set by hand.

    Attributes:
        whole: largest distance of a count from a whole number; float32 leaves a thousandth.
        tried: tokens of which the nearest is taken, the likeliest by their part along what is sought.
        apart: part of a context's input outside that of shorter ones, below which it is rounding.
        proportion: smallest ratio of the largest to the smallest singular value of the head's inputs, below which they count as dependent.
    """

    whole: float = 0.2
    tried: int = 8
    apart: float = 1e-5
    proportion: float = 1e-6


SETTINGS = Settings()


def records_by_next_tokens(
    update: Mapping[str, Tensor], subject: Subject, prefixes: Sequence[Int64[Tensor, " length"]], *, batch_size: int
) -> tuple[Int64[Tensor, " length"], ...] | None:
    """All records of the batch, last tokens and copies included, from all beginnings that were found.

    Args:
        update: a gradient, or a multiple of one.
        prefixes: sequences that hold every context, wrong ones among them: those get the count zero.

    Returns:
        None where the head is not shared, contexts do not determine the columns, or counts are no whole numbers: then a context is missing.
    """
    head = subject.anatomy.head
    if (
        subject.loss.sees_every_token
        or subject.loss.hides_tokens
        or head is None
        or head.weight not in update
        or not prefixes
    ):
        return None
    contexts = _Contexts.of(subject, head, prefixes)
    if contexts is None:
        return None
    gradient = head.as_matrix(update[head.weight]).double()
    columns = (gradient @ torch.linalg.pinv(contexts.inputs)).T
    free = torch.ones(gradient.shape[0], dtype=torch.bool, device=gradient.device)
    if subject.anatomy.tied:
        free[torch.cat(tuple(prefixes)).unique()] = False
    shares = (columns[:, free] / contexts.chances[:, free]).median(dim=1).values
    openings = torch.tensor([len(context) == 1 for context in contexts.tuples], device=shares.device)
    whole = float(shares[openings].sum())
    if whole == 0:
        return None
    counts = _whole(shares * batch_size / whole)
    nexts = _whole((shares.unsqueeze(1) * contexts.chances - columns)[:, free] * batch_size / whole)
    if counts is None or nexts is None:
        return None
    ends, open_ends = _ends(contexts, counts, nexts, free.nonzero().flatten())
    if open_ends:
        ends += _ends_by_last_map(
            update, subject, contexts, _targets(contexts, counts, ends), open_ends, batch_size / whole
        )
    records = tuple(torch.tensor((*context, token)) for context, token in ends)
    return records if len(records) == batch_size else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Contexts:
    """Distinct beginnings, where they stand in the rows that were run, and what the head makes of them."""

    tuples: tuple[Context, ...]
    ids: Int64[Tensor, "rows seq"]
    mask: Bool[Tensor, "rows seq"]
    rows: Int64[Tensor, " contexts"]
    places: Int64[Tensor, " contexts"]
    inputs: Float[Tensor, "contexts features"]
    chances: Float[Tensor, "contexts vocab"]

    @staticmethod
    def of(subject: Subject, head: LinearMap, prefixes: Sequence[Tensor]) -> _Contexts | None:
        """None if what the head reads in them is linearly dependent."""
        ids = torch.nn.utils.rnn.pad_sequence(list(prefixes), batch_first=True)
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=ids.device)
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(1)
        places: dict[Context, tuple[int, int]] = {}
        for row, prefix in enumerate(prefixes):
            tokens = tuple(prefix.tolist())
            for end in range(len(tokens)):
                places.setdefault(tokens[: end + 1], (row, end))
        shortest = sorted(places, key=len)
        rows, ends = (torch.tensor([places[c][side] for c in shortest], device=ids.device) for side in range(2))
        read = linear_inputs(subject, (head.module,), ids, mask=mask)[head.module]
        kept = _independent(read[rows, ends].double())
        rows, ends = rows[kept], ends[kept]
        inputs = read[rows, ends].double()
        singular = torch.linalg.svdvals(inputs)
        if len(kept) == inputs.shape[1] or float(singular[-1]) <= SETTINGS.proportion * float(singular[0]):
            return None
        with torch.no_grad():
            logits = subject.logits(inputs=ids, mask=mask)[rows, ends]
        return _Contexts(
            tuples=tuple(shortest[place] for place in kept),
            ids=ids,
            mask=mask,
            rows=rows,
            places=ends,
            inputs=inputs,
            chances=logits.double().softmax(dim=-1),
        )


def _independent(inputs: Float[Tensor, "contexts features"]) -> list[int]:
    """Rows that are not spanned by earlier ones: behind rotations a token that is repeated for ever reads itself, and hands on the same."""
    basis = inputs[:0]
    kept: list[int] = []
    for place, row in enumerate(torch.nn.functional.normalize(inputs, dim=1)):
        rest = row - (row @ basis.T) @ basis
        rest = rest - (rest @ basis.T) @ basis
        if float(rest.norm()) > SETTINGS.apart and len(kept) < inputs.shape[1]:
            basis = torch.cat((basis, (rest / rest.norm()).unsqueeze(0)))
            kept.append(place)
    return kept


def _whole(values: Tensor) -> Int64[Tensor, "*any"] | None:
    """Counts as whole numbers; None if one of them is none, or negative."""
    near = values.round()
    if bool(((values - near).abs() > SETTINGS.whole).any()) or bool((near < 0).any()):
        return None
    return near.long()


def _ends(
    contexts: _Contexts, counts: Tensor, nexts: Tensor, tokens: Tensor
) -> tuple[list[tuple[Context, int]], dict[int, int]]:
    """Context and last token of every record that ends in one of ``tokens``; how many others end behind which context."""
    number = {context: at for at, context in enumerate(contexts.tuples)}
    free = set(tokens.tolist())
    elsewhere = dict.fromkeys(number, 0)
    for context, at in number.items():
        if len(context) > 1 and context[-1] not in free:
            elsewhere[context[:-1]] += int(counts[at])
    ends: list[tuple[Context, int]] = []
    open_ends: dict[int, int] = {}
    for at, column in nexts.nonzero().tolist():
        context, token = contexts.tuples[at], int(tokens[column])
        follower = number.get((*context, token))
        over = int(nexts[at, column]) - (0 if follower is None else int(counts[follower]))
        ends += [(context, token)] * max(0, over)
    for context, at in number.items():
        left = int(counts[at]) - int(nexts[at].sum()) - elsewhere[context]
        if left > 0:
            open_ends[at] = left
    return ends, open_ends


def _targets(
    contexts: _Contexts, counts: Tensor, ends: Sequence[tuple[Context, int]]
) -> Float[Tensor, "contexts vocab"]:
    """How often each token is known to come next."""
    number = {context: at for at, context in enumerate(contexts.tuples)}
    targets = torch.zeros_like(contexts.chances)
    for context, at in number.items():
        if len(context) > 1:
            targets[number[context[:-1]], context[-1]] += counts[at]
    for context, token in ends:
        targets[number[context], token] += 1
    return targets


def _ends_by_last_map(
    update: Mapping[str, Tensor],
    subject: Subject,
    contexts: _Contexts,
    targets: Float[Tensor, "contexts vocab"],
    open_ends: Mapping[int, int],
    scale: float,
) -> list[tuple[Context, int]]:
    """The last tokens that rows of a tied table do not show; empty where the last block's map was not shared.

    Args:
        targets: known next tokens; ``open_ends``: how many more each context has.
        scale: what the update has to be multiplied with to be the sum over all targets.
    """
    last = subject.anatomy.blocks[-1].mlp_output
    if last is None or last.weight not in update:
        return []
    seen: dict[str, Tensor] = {}

    def watch(_: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["input"] = args[0].detach()
        seen["output"] = output.detach().requires_grad_()
        return seen["output"]

    handle = subject.module.get_submodule(last.module).register_forward_hook(watch)
    try:
        logits = subject.logits(inputs=contexts.ids, mask=contexts.mask)[contexts.rows, contexts.places]
    finally:
        handle.remove()

    def back(errors: Tensor, *, keep: bool = False) -> Tensor:
        """Jᵀ of every context's own error."""
        (result,) = torch.autograd.grad(
            logits, seen["output"], errors.to(logits.dtype), create_graph=keep, retain_graph=True
        )
        return result.reshape(*contexts.ids.shape, -1)[contexts.rows, contexts.places]

    read = seen["input"].reshape(*contexts.ids.shape, -1)[contexts.rows, contexts.places].double()
    places = torch.tensor(list(open_ends))
    known = back(targets.sum(dim=1, keepdim=True) * contexts.chances - targets).double()
    gradient = last.as_matrix(update[last.weight]).double() * scale - known.T @ read
    shown = (gradient @ torch.linalg.pinv(read[places].T).T).T
    left = torch.tensor(list(open_ends.values())).unsqueeze(1)
    wanted = left * back(contexts.chances)[places].double() - shown
    return _likeliest(contexts, back, wanted, places, left.flatten().tolist())


def _likeliest(
    contexts: _Contexts, back: Callable[..., Tensor], wanted: Tensor, places: Tensor, left: Sequence[int]
) -> list[tuple[Context, int]]:
    """For each place the tokens whose Jᵀ e_y add up to what is wanted, one after the other."""
    dummy = torch.zeros_like(contexts.chances, requires_grad=True)
    along = back(dummy, keep=True)
    result: list[tuple[Context, int]] = []
    for turn in range(max(left)):
        direction = torch.zeros_like(along)
        direction[places] = wanted.to(direction.dtype)
        (scores,) = torch.autograd.grad(along, dummy, direction, retain_graph=True)
        likely = scores[places].topk(SETTINGS.tried, dim=1).indices
        best, nearest = likely[:, 0].clone(), wanted.new_full((len(places),), torch.inf)
        rests = wanted.clone()
        for tokens in likely.T:
            one_hot = torch.zeros_like(contexts.chances)
            one_hot[places, tokens] = 1.0
            rest = wanted - back(one_hot)[places].double()
            better = rest.norm(dim=1) < nearest
            best, nearest = torch.where(better, tokens, best), torch.where(better, rest.norm(dim=1), nearest)
            rests[better] = rest[better]
        wanted = rests
        result += [
            (contexts.tuples[int(place)], int(token))
            for place, token, count in zip(places, best, left, strict=True)
            if turn < count
        ]
    return result
