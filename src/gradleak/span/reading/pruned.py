"""Why: rows of a pruned embedding gradient that are not zero are tokens of the batch for certain. Where the first attention's own
survivors do not determine its space, the inputs of those tokens at any place span one that holds it. Must not know how sequences
are searched.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from gradleak.mechanics.embeddings.rows import EmbeddingChannel
from gradleak.mechanics.subspace.completion import determinable, determined
from gradleak.mechanics.subspace.frames import frame_of
from gradleak.mechanics.subspace.subspace import INPUT_ROUNDING, Subspace
from gradleak.models import LinearMap
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import ObservedLayer


def space_of_known_tokens(case: AttackInput, first: ObservedLayer) -> ObservedLayer:
    """The first reader, or one of the space that all known tokens span where its own space is not determined.

    Tokens whose rows were left out altogether are not in it: records that hold them cannot be found whole.
    """
    if not case.pruned or determined(first.space) or case.seq_len is None:
        return first
    channel = EmbeddingChannel.of(case.update, case.subject.anatomy)
    if channel is None or not channel.support.exact or not channel.support.ids.numel():
        return first
    ids = channel.support.ids.unsqueeze(1).expand(-1, case.seq_len)
    (inputs,) = case.model.inputs((first,), ids)
    unit = torch.nn.functional.normalize(inputs.flatten(0, 1).double(), dim=1)
    basis = frame_of(unit, cut=len(unit) * INPUT_ROUNDING**2)
    if 2 * basis.shape[1] > first.space.features:
        return first
    space = Subspace(
        basis=basis,
        singular=basis.new_full((basis.shape[1],), math.inf),
        spectrum=first.space.spectrum,
        noise=first.space.noise,
        precision=INPUT_ROUNDING,
        edge=first.space.edge,
        inputs=basis.shape[1],
    )
    return replace(first, space=space, left_out=True)


def undetermined_reason(case: AttackInput, maps: tuple[LinearMap, ...]) -> str:
    """What the survivors of a pruned gradient determine, in words; empty where nothing was pruned."""
    shared = [m.as_matrix(case.update[m.weight]).T for m in maps if m.weight in case.update]
    if not case.pruned or not shared:
        return ""
    present = torch.cat(shared, dim=1) != 0
    share, most = float(present.double().mean()), determinable(present)[0]
    return (
        f"; of the gradient behind the first attention {share:.1%} of the entries survive: they determine at most rank {most} by count, "
        "and those that were held out did not confirm a completion"
    )
