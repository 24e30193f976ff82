"""What the adversary knows besides the update is explicit. An attack receives a view that raises on anything
it did not declare; a threat model is a named set of facts. Must not know any attack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from gradleak.core.errors import KnowledgeError, UnknownNameError

if TYPE_CHECKING:
    from gradleak.core.update import Update

FACTS: Mapping[str, str] = MappingProxyType(
    {
        "subject": "the model that was trained: architecture, weights, tokenizer",
        "trainer": "the local training: loss, what is shared, steps, optimizer, learning rate, number format",
        "stages": "the defense in use, with its settings",
        "batch_size": "the number of records in the batch",
        "seq_len": "the padded length of the batch",
        "framing": "the special tokens that the tokenizer puts before and after every record",
        "mask": "the length of every record",
        "labels": "the label of every record",
        "candidates": "a closed world: plausible records in random order, the private ones among them",
    }
)
"""Every fact an adversary can hold, with what it means."""

ORACLE_FACTS = frozenset({"mask", "labels", "candidates"})
"""Facts about the private batch itself, which a real receiver has no way to know."""


Place = Literal["server", "after_training", "during_training"]
"""Where an adversary reads: what is released, a client's update before that, or the gradient of one local step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Threat:
    """A named adversary: the facts it holds, and where it reads the update (``Channel.seen_from``)."""

    name: str
    summary: str
    facts: frozenset[str]
    place: Place = "server"


_SERVER = frozenset({"subject", "trainer", "stages", "batch_size", "seq_len", "framing"})

THREATS: Mapping[str, Threat] = MappingProxyType(
    {
        threat.name: threat
        for threat in (
            Threat(
                name="honest_server",
                summary="Follows the protocol and knows it, the defense included; knows neither labels nor lengths.",
                facts=_SERVER,
            ),
            Threat(
                name="informed_server",
                summary="As honest_server, and told labels and lengths: the setting of most published text attacks.",
                facts=_SERVER | {"mask", "labels"},
            ),
            Threat(
                name="closed_world",
                summary="As honest_server, and holds a list of records that the private ones are known to be among.",
                facts=_SERVER | {"candidates"},
            ),
            Threat(
                name="naive_server",
                summary="As honest_server, but unaware of the defense. Flatters defenses; use it only as a comparison.",
                facts=_SERVER - {"stages"},
            ),
            Threat(
                name="eavesdropper",
                summary="Holds the public model and one captured update; knows nothing of the training or the batch.",
                facts=frozenset({"subject"}),
            ),
            Threat(
                name="after_training",
                summary="Inside the client: reads its update after local training, before any stage of the release acts.",
                facts=_SERVER,
                place="after_training",
            ),
            Threat(
                name="during_training",
                summary="Inside the client: reads the gradient of one local step, as the optimizer gets it.",
                facts=_SERVER,
                place="during_training",
            ),
        )
    }
)


def find_threat(name: str) -> Threat:
    """The threat model of that name. Raises ``UnknownNameError``."""
    key = name.replace("-", "_")
    if key not in THREATS:
        raise UnknownNameError("threat", name, THREATS)
    return THREATS[key]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The facts that one attack may read: those it declared, as far as the adversary knows them."""

    declared: frozenset[str]
    _facts: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, fact: str) -> Any:
        """The value of a fact that the attack needs. Raises ``KnowledgeError`` if undeclared or unknown."""
        value = self.get(fact)
        if value is None:
            raise KnowledgeError(
                f"The fact {fact!r} is unknown to this adversary; declare it in `needs`, not in `uses`."
            )
        return value

    def get(self, fact: str) -> Any | None:
        """The value of a fact, or None if this adversary does not know it. Raises ``KnowledgeError`` if undeclared."""
        if fact not in self.declared:
            raise KnowledgeError(f"The attack read {fact!r} without declaring it in `needs` or `uses`.")
        return self._facts.get(fact)


@dataclass(frozen=True, kw_only=True, slots=True)
class Knowledge:
    """All that an adversary knows besides the update."""

    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        for fact in self.facts:
            if fact not in FACTS:
                raise UnknownNameError("fact", fact, FACTS)
        object.__setattr__(self, "facts", MappingProxyType(dict(self.facts)))

    def missing(self, needs: frozenset[str]) -> frozenset[str]:
        return frozenset(fact for fact in needs if self.facts.get(fact) is None)

    def view(self, declared: frozenset[str]) -> View:
        return View(declared=declared, _facts={fact: self.facts[fact] for fact in declared if fact in self.facts})

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(fact for fact, value in self.facts.items() if value is not None))


def knowledge_of(threat: Threat, facts: Mapping[str, Any]) -> Knowledge:
    """Those of ``facts`` that this threat model holds."""
    return Knowledge(facts={name: value for name, value in facts.items() if name in threat.facts})


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What one adversary holds about one batch."""

    update: Update
    knowledge: Knowledge
