"""Parameter-efficient training adds to a linear map a product of two thin ones, and shares only those. Which maps are
such a pair shows in the data flow: one reads what its target reads, the other feeds on the first alone and makes what the
target makes. Must not know the library that made them.
"""

from __future__ import annotations

import torch

from gradleak.models.running.tracing import Call, Trace


def adapter_calls(run: Trace) -> tuple[tuple[Call, Call, Call], ...]:
    """Triples (target, down, up) of a run that was cut at every linear map.

    A pair is an adapter if it is bracketed with a map of the same input and the same output width: the smallest module
    that holds the pair holds the target too.
    """
    found: list[tuple[Call, Call, Call]] = []
    for up in run.calls.values():
        if len(up.feeders) != 1:
            continue
        ((path, crossed),) = up.feeders
        down = run.calls[path]
        if crossed or down.made.shape != up.read.shape:
            continue
        target = _target(run, down, up)
        if target is not None:
            found.append((target, down, up))
    return tuple(found)


def _target(run: Trace, down: Call, up: Call) -> Call | None:
    bracket = _common_prefix(down.path, up.path)
    if not bracket:
        return None
    for call in run.calls.values():
        if call is down or call is up or not call.path.startswith(f"{bracket}."):
            continue
        same_input = call.read.shape == down.read.shape and torch.equal(call.read, down.read)
        if same_input and call.made.shape == up.made.shape:
            return call
    return None


def _common_prefix(first: str, second: str) -> str:
    shared: list[str] = []
    for one, other in zip(first.split("."), second.split("."), strict=False):
        if one != other:
            break
        shared.append(one)
    return ".".join(shared)
