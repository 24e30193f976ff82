"""A hybrid model mixes positions by convolutions or recurrences before its first softmax attention, so the maps that read
the tokens themselves are not those of that attention. Found from the data flow. Must not know any architecture.
"""

from __future__ import annotations

from gradleak.models.running.tracing import Call, Trace, influence_on, same_input

_FOLLOWING = 4
"""Groups of maps behind the entrance that are listed: more than two are read by no attack."""


def read_entrance(run: Trace, first: Call) -> tuple[tuple[Call, ...], tuple[tuple[Call, ...], ...]]:
    """The maps that read the tokens before anything mixes positions, and the groups of maps that follow.

    Args:
        first: a map that reads the input of the first softmax attention.

    Returns:
        Two empty tuples where that attention reads the tokens itself; else the last group of maps, in the order of the run,
        that read one and the same function of single tokens, and the next groups, which read mixtures.
    """
    alone = _alone(run)
    if first.path in alone:
        return (), ()
    calls = list(run.calls.values())
    mixed = next(place for place, call in enumerate(calls) if call.path not in alone)
    groups = _by_what_they_read(calls[:mixed])
    if not groups:
        return (), ()
    return groups[-1], tuple(_by_what_they_read(calls[mixed:])[:_FOLLOWING])


def _alone(run: Trace) -> set[str]:
    """Paths of the maps whose input at the last position depends on no other position of what maps before made."""
    found: set[str] = set()
    for path, call in run.calls.items():
        feeders = {each for each, _ in call.feeders}
        if feeders <= found and not any(_reaches(call, run.calls[each]) for each in feeders):
            found.add(path)
    return found


def _reaches(call: Call, feeder: Call) -> bool:
    return bool(influence_on(call.read, feeder.made, position=-1)[:-1].any())


def _by_what_they_read(calls: list[Call]) -> list[tuple[Call, ...]]:
    groups: list[list[Call]] = []
    for call in calls:
        group = next((each for each in groups if same_input(each[0], call)), None)
        if group is None:
            groups.append([call])
        else:
            group.append(call)
    return [tuple(group) for group in groups]
