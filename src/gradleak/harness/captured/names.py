"""Trainers, wrappers and adapter libraries write parameter names in their own ways. Here the tensors of a file are put under the names
of the model that they belong to, and what fits nothing is told. Must not know what the tensors mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from gradleak.models import Subject

_WRAPPERS = frozenset(
    {
        "module",
        "_orig_mod",
        "_forward_module",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_module",
        "base_layer",
    }
)
"""Components that a wrapper puts into a path, wherever it stands: data parallelism, compilation, sharding, checkpointing,
per-example gradients, adapters."""
_PEFT = ("base_model", "model")
_SAVED = "modules_to_save"
_ADAPTED = ("lora_A", "lora_B")
_BARE = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
"""Parameters of adapters that are kept by adapter name, without a module of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """How the names of an update stand to those of a model.

    Attributes:
        own: name in the file → parameter name of the model.
        prefix: what stands before the names in the file, beside the model's own; empty for nothing.
        adapters: names of adapters in the file's keys.
        aliases: names in the file of a tensor that the model holds under another one (a tied head).
        buffers: names of state that is no parameter.
        unknown: names that fit nothing in the model.
        misfits: (name in the file, its shape, the model's shape).
        missing: trained parameters of the model that the file does not hold.
    """

    own: Mapping[str, str]
    prefix: str = ""
    adapters: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    misfits: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    missing: tuple[str, ...] = ()

    def to_plain(self) -> dict[str, object]:
        return {
            "matched": len(self.own),
            "prefix": self.prefix,
            "adapters": list(self.adapters),
            "tied": list(self.aliases),
            "buffers": list(self.buffers),
            "unknown": list(self.unknown),
            "misfits": [
                {"name": name, "shape": list(given), "model": list(wanted)} for name, given, wanted in self.misfits
            ],
            "missing": list(self.missing),
        }


def map_names(tensors: Mapping[str, Tensor], subject: Subject) -> Names:
    """The update's names under the model's."""
    shapes = {name: tuple(value.shape) for name, value in subject.module.named_parameters()}
    aliases = {name: first for first, others in _tied(subject).items() for name in others}
    buffers = {_canonical(name) for name, _ in subject.module.named_buffers()}
    known = {_canonical(name): name for name in (*aliases, *shapes)}
    matches = _matched(tensors, known)
    own: dict[str, str] = {}
    tied: list[str] = []
    misfits: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    for given, name in matches.items():
        if name in aliases:
            tied.append(given)
            continue
        if tuple(tensors[given].shape) != shapes[name]:
            misfits.append((given, tuple(tensors[given].shape), shapes[name]))
        else:
            own[given] = name
    for given in tied:
        # The tensor is the same, so one of the two names is enough.
        if (
            aliases[matches[given]] not in own.values()
            and tuple(tensors[given].shape) == shapes[aliases[matches[given]]]
        ):
            own[given] = aliases[matches[given]]
    rest = [name for name in tensors if name not in matches]
    state = tuple(name for name in rest if _is_buffer(name, buffers))
    return Names(
        own=own,
        prefix=_prefix(own),
        adapters=tuple(sorted({adapter for name in tensors if (adapter := _adapter_of(name))})),
        aliases=tuple(tied),
        buffers=state,
        unknown=tuple(name for name in rest if name not in state),
        misfits=tuple(misfits),
        missing=tuple(name for name in subject.trainable() if name not in own.values()),
    )


def own_names(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The tensors that the model has, under its names."""
    return {name: tensors[given] for given, name in names.own.items()}


def _matched(tensors: Mapping[str, Tensor], known: Mapping[str, str]) -> dict[str, str]:
    """Name in the file → name of the model: equal but for wrappers, or else one the end of the other, the same way for all."""
    canonical = {name: _canonical(name) for name in tensors}
    matches = {name: known[short] for name, short in canonical.items() if short in known}
    rest = {name: short for name, short in canonical.items() if name not in matches}
    votes = Counter(
        pair
        for short in rest.values()
        for other in known
        if (pair := _ends(short, other)) is not None and (pair[0] or pair[1])
    )
    for (cut, put), count in votes.most_common():
        if count < 2 and len(rest) > 1:
            break
        for name, short in list(rest.items()):
            moved = _moved(short, cut, put)
            if moved in known and known[moved] not in matches.values():
                matches[name] = known[moved]
                del rest[name]
    return matches


def _moved(name: str, cut: str, put: str) -> str:
    if cut and not name.startswith(f"{cut}."):
        return ""
    return (f"{put}." if put else "") + (name[len(cut) + 1 :] if cut else name)


def _ends(given: str, known: str) -> tuple[str, str] | None:
    """What has to be cut off ``given`` and put in its place to make it ``known``; None unless one is the end of the other."""
    if given.endswith(f".{known}"):
        return given[: -len(known) - 1], ""
    if known.endswith(f".{given}"):
        return "", known[: -len(given) - 1]
    return None


def _canonical(name: str) -> str:
    """The path without wrappers and without the names of adapters."""
    parts = name.split(".")
    if tuple(parts[:2]) == _PEFT:
        parts = parts[2:]
    kept: list[str] = []
    place = 0
    while place < len(parts):
        part = parts[place]
        place += 1
        if part in _WRAPPERS:
            continue
        if part in _BARE:
            return ".".join([*kept, part])
        if part != _SAVED:
            kept.append(part)
        # The name of the adapter follows, unless the file leaves it out.
        if part in (*_ADAPTED, _SAVED) and place + 1 < len(parts):
            place += 1
    return ".".join(kept)


def _adapter_of(name: str) -> str:
    parts = name.split(".")
    for place, part in enumerate(parts[:-2]):
        if part in (*_ADAPTED, *_BARE, _SAVED):
            return parts[place + 1]
    return ""


def _tied(subject: Subject) -> dict[str, list[str]]:
    names: dict[int, list[str]] = {}
    for name, value in subject.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return {group[0]: group[1:] for group in names.values() if len(group) > 1}


def _prefix(own: Mapping[str, str]) -> str:
    pairs = Counter(
        given[: -len(name)].rstrip(".") for given, name in own.items() if given.endswith(name) and given != name
    )
    return pairs.most_common(1)[0][0] if pairs else ""


def _is_buffer(name: str, buffers: Iterable[str]) -> bool:
    short = _canonical(name)
    return any(short == buffer or short.endswith(f".{buffer}") for buffer in buffers)
