"""Reconstruction × truth → a value per record, with its chance level and direction. Must not know any attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from gradleak.core.batch import Modality


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A measured value with its 95 % interval.

    Attributes:
        low, high: interval of the mean over ``n`` records; equal to ``value`` when one unbounded record leaves no spread.
        chance: expected value for guessing without the observation, or None where it has no closed form.
    """

    value: float
    low: float
    high: float
    chance: float | None
    n: int
    higher_is_better: bool

    def to_plain(self) -> dict[str, float | int | bool | None]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "chance": self.chance,
            "n": self.n,
            "higher_is_better": self.higher_is_better,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What a metric sees: aligned pairs, decided once by the judge with a one-to-one assignment.

    Attributes:
        truth: the private records, specials and padding removed: ids ``[length]`` or pixels.
        guess: for each truth the matched proposal, or None if the attack proposed fewer; the same one never twice.
        aligned: for text, truth and guess as they stand in their positions, specials kept; equal to the above for images.
        extras: proposals left without a truth (spurious).
        ordered: False if the attack proposed one bag of tokens; then ``guess[0]`` is the bag.
        decoys: other plausible records from the same source, for identification.
        confidence: for each guess that stands in its positions what the attack itself claims of every token, or None.
        ranking: records that the attack ranked itself, the likeliest first; as the truth, without specials and padding.
        special_ids: ids that structure the text and carry no content (beginning, end, padding).
        vocab_size: number of token ids; 0 for images.
        decode: token ids → text.
    """

    truth: tuple[Tensor, ...]
    guess: tuple[Tensor | None, ...]
    aligned: tuple[tuple[Tensor, Tensor | None], ...]
    extras: tuple[Tensor, ...]
    ordered: bool
    decoys: tuple[Tensor, ...]
    special_ids: frozenset[int]
    vocab_size: int
    decode: Callable[[Tensor], str]
    ranking: tuple[Tensor, ...] = ()
    confidence: tuple[Tensor | None, ...] = ()


class Metric(ABC):
    """A per-record measure. Subclasses are stateless, one per file; the module's name is the metric's name."""

    summary: ClassVar[str]
    modalities: ClassVar[frozenset[Modality]]
    higher_is_better: ClassVar[bool] = True
    bags: ClassVar[Literal["scored", "zero", "omitted"]] = "omitted"
    """What a proposal without order gets: a value, zero for every record, or no value."""
    bounded: ClassVar[bool] = True
    """Whether values lie in [0, 1] and the exact interval of a rate applies; otherwise the interval is bootstrapped."""
    best: ClassVar[float] = 1.0
    """Value of a perfect reconstruction, beyond which the metric cannot tell attacks apart."""

    @abstractmethod
    def values(self, comparison: Comparison) -> list[float]:
        """One finite value per true record to which the measure applies, in the order of the records.

        Records without a value: those that hold nothing the measure counts, those without a proposal where a missing
        proposal has no honest value (images), all where the measure lacks what it needs (no decoys).
        """

    @abstractmethod
    def chance(self, comparison: Comparison) -> float | None:
        """Expected mean value of guessing uniformly without the observation, or None where there is no closed form."""
