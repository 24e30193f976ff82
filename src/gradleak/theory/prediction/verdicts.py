"""Numbers become answers in one place, each with its reason in one sentence. Must not compute laws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradleak.core.batch import Batch
from gradleak.models import Subject
from gradleak.theory.identifiability.adapters import adapter_verdict
from gradleak.theory.identifiability.counting import Uniqueness, Verdict
from gradleak.theory.identifiability.input_kinds import InputLaw
from gradleak.theory.identifiability.rank import TokenPositionGraph
from gradleak.theory.identifiability.receptive_field import Reach
from gradleak.theory.identifiability.span_table import Cell
from gradleak.theory.identifiability.symmetries import Invariance
from gradleak.theory.prediction.types import Ambiguity, Conclusion, Equations


def ambiguity_of(graph: TokenPositionGraph, law: InputLaw) -> Ambiguity:
    """The certificate of what the first span test leaves open."""
    rank, open_pairs = graph.rank(bias=law.bias), graph.indistinguishable(bias=law.bias)
    cycles = sum(component.cycles for component in graph.components) if graph.positional else 0
    if rank >= law.room:
        sentence = f"The inputs span {law.room} dimensions, all there are: the first test accepts everything."
    elif not graph.positional:
        sentence = "Positions do not enter the first layer: its test tells the bag of tokens, never their places."
    elif open_pairs == graph.pairs:
        sentence = (
            "Every token-position pair of the batch is told from every other: the first test gives tokens and places."
        )
    else:
        sentence = (
            f"Of {open_pairs} pairs of this batch's tokens and positions that pass the first test, {graph.pairs} are real: "
            "it tells the bag of tokens, and order has to come from behind the first attention."
        )
    return Ambiguity(
        tokens=graph.tokens,
        positions=graph.positions,
        pairs=graph.pairs,
        components=len(graph.components),
        cycles=cycles,
        rank=min(rank, law.room),
        indistinguishable=open_pairs,
        sentence=sentence,
    )


def invisible(subject: Subject, batch: Batch, reach: Reach) -> Iterator[str]:
    """What the column spaces of these gradients do not show, and where it shows instead, if anywhere."""
    yield "how often a record is repeated (the size of its gradient tells, once the records are known), and the order of records"
    if not subject.loss.sees_every_token:
        yield "the last token of each record in every attention gradient (it is a label, so the head's gradient shows it)"
    if subject.loss.hides_tokens:
        yield "a hidden token at the place where it was hidden (it is a label, so the head's gradient shows it)"
    dark = int((batch.mask & ~reach.output).sum())
    if dark:
        yield f"behind the first attention: {dark} of {int(batch.mask.sum())} tokens, which have no error signal there"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contexts:
    """What the layer behind the first attention tells apart.

    Attributes:
        distinct: contexts that differ; room: dimensions of its input in which they can be told.
        lit: tokens with an error signal there.
    """

    distinct: int
    room: int
    lit: int


def conclude(
    together: Cell, ambiguity: Ambiguity, equations: Equations, invariances: Sequence[Invariance], contexts: Contexts
) -> Iterator[Conclusion]:
    """The three questions of every prediction.

    Args:
        together: what the first attention's gradients hold together.
    """
    yield Conclusion(question="embeddings, by counting", verdict=_by_counting(equations, invariances))
    yield Conclusion(question="tokens, by the first attention", verdict=_by_first(together, ambiguity))
    yield Conclusion(question="records, by the layer behind it", verdict=_by_second(contexts, together))


def conclude_adapters(rank: int, *, maps: int, ambiguity: Ambiguity) -> Iterator[Conclusion]:
    """What adapters of this rank on ``maps`` maps would hold, before and after the first step."""
    for fresh in (True, False):
        yield Conclusion(
            question=f"tokens, by adapters of rank {rank}" + (" before the first step" if fresh else ""),
            verdict=adapter_verdict(rank=rank, maps=maps, inputs=ambiguity.rank, fresh=fresh),
        )


def _by_counting(equations: Equations, invariances: Sequence[Invariance]) -> Verdict:
    total = equations.per_layer * equations.layers
    sides = f"{equations.unknowns:,} unknowns, {total:,} independent equations in {equations.layers} attention layers"
    if equations.unknowns > total:
        return Verdict(
            uniqueness=Uniqueness.UNDERDETERMINED,
            reason=f"{sides}: embeddings alone do not follow (feed-forward layers add equations, the vocabulary adds more).",
        )
    named = [item.name for item in invariances if item.holds]
    return Verdict(
        uniqueness=Uniqueness.UP_TO_SYMMETRY,
        reason=f"{sides}; the gradient does not see {' nor '.join(named)}. The count is necessary, not sufficient.",
    )


def _by_first(cell: Cell, ambiguity: Ambiguity) -> Verdict:
    if not cell.tells:
        reason = cell.reason or "no token of the batch is in the span by itself"
        return Verdict(uniqueness=Uniqueness.UNDERDETERMINED, reason=f"rank {cell.rank} of {cell.room}: {reason}.")
    held = int(cell.held.sum())
    part = f"{held} of {cell.tokens} tokens are in a span of rank {cell.rank} of {cell.room}"
    if ambiguity.indistinguishable > ambiguity.pairs:
        return Verdict(
            uniqueness=Uniqueness.UP_TO_SYMMETRY,
            reason=f"{part}; the symmetry is which token stands where: {ambiguity.indistinguishable} pairs pass, {ambiguity.pairs} are real.",
        )
    return Verdict(uniqueness=Uniqueness.UNIQUE, reason=f"{part}, each at its own position.")


def _by_second(contexts: Contexts, cell: Cell) -> Verdict:
    distinct, room = contexts.distinct, contexts.room
    if not cell.tells:
        return Verdict(
            uniqueness=Uniqueness.UNDERDETERMINED,
            reason="without tokens from the first attention there is nothing to order.",
        )
    if distinct >= room:
        return Verdict(
            uniqueness=Uniqueness.UNDERDETERMINED,
            reason=f"{distinct} distinct contexts fill the {room} dimensions of the feed-forward input: every order passes.",
        )
    return Verdict(
        uniqueness=Uniqueness.UP_TO_SYMMETRY,
        reason=f"{distinct} distinct contexts in {room} dimensions, {contexts.lit} of {cell.tokens} tokens with a signal; the symmetry is the order "
        "and multiplicity of the records.",
    )
