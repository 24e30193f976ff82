"""Why: where noise blurs the spaces a proposed token may be wrong. How probable that is, is told by what the update says of the
same record with another token in its place. Must not know how records were found.

For a place in the model with gradient Y in units of its noise (m columns), C = Y Yᵀ / m, and rows X of a record, given rows A of
the other records,

    Λ = (m/2) [log det(X Xᵀ | A) − log det(X C⁻¹ Xᵀ | A)],      det(· | A): of the part outside A,

is Wilks's log-likelihood ratio of "the record is in the batch", summed over places; Λ_u is that of the record with token u in the
place of t. Three things can be wrong with t: a token u of another record belongs there, whose odds are e^{Λ_u − Λ}; t itself
belongs to one of the other n − 1 records; or t is none of the batch, but one of the V tokens of the vocabulary. In the last two
cases Λ follows a law that can be sampled: what t shows in other records, and what random tokens show in this one. With p_w and
p_r the chances that such draws come as high (Student's law, spreads pooled over the records),

    odds against t:   O = Σ_u e^{Λ_u − Λ} + n p_w + V p_r.

Random tokens feel what is missing from the proposal as well as t does; that is why their law, and not that of noise alone, is asked.
Were all else right, P(t is right) were 1 / (1 + O). It is asked where directions stand out that no record explains: there some of
the others are wrong and Λ says too much. So P = σ(a − b min(log O, c)), with a, b and c by maximum likelihood on records whose
truth is known (``benchmarks/span/confidence.py --fit``), as Platt calibrated classifiers (1999).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import t as student
from torch import Tensor

from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import chunks, linear_inputs
from gradleak.mechanics.subspace.frames import frame_of, outside
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood

OFFSET, SLOPE, WORST = 0.7, 0.27, 6.23
"""a, b and c."""
CLEAR = 16.0
"""Largest logarithm of odds that is told apart."""
_EXCHANGED = 6
"""Other records that each one exchanges tokens with, at most."""
_RANDOM, _POOLED = 2, 16
"""Random tokens in the place of each token, and at least how many at one place of all records together."""
_DEPENDENT = 1e-5
"""Length below which a unit row has nothing of its own."""
_BUFFERS = 12
"""Activations that a model holds per entry of its stream, roughly."""

Records = Sequence[Int64[Tensor, " length"]]


def token_confidence(
    records: Records, preferred: Sequence[GradientLikelihood], model: Model, rng: torch.Generator
) -> tuple[Float[Tensor, " length"], ...]:
    """The probability of every token of every record that it stands in this place.

    Args:
        preferred: places in the model, at least one.
        rng: draws the random tokens.
    """
    odds = log_odds_against(records, preferred, model, rng)
    return tuple((OFFSET - SLOPE * each.clamp(max=WORST)).sigmoid() for each in odds)


def log_odds_against(
    records: Records, preferred: Sequence[GradientLikelihood], model: Model, rng: torch.Generator
) -> tuple[Float[Tensor, " length"], ...]:
    """log O of every token, between −``CLEAR`` and ``CLEAR``."""
    law = _Law(preferred=tuple(preferred), model=model)
    rows = [law.inputs(ids.unsqueeze(0)) for ids in records]
    tried = [_Tried.of(records, p, model.vocab_size, rng) for p in range(max(len(ids) for ids in records))]
    scored = [law.exchanged(i, ids, tried, rows[:i] + rows[i + 1 :]) for i, ids in enumerate(records)]
    odds = [torch.empty(len(ids), dtype=torch.float64) for ids in records]
    for p, each in enumerate(tried):
        told = each.table([scored[i][p] for i in each.records]).log_odds_against(model.vocab_size)
        for i, value in zip(each.records, told.clamp(-CLEAR, CLEAR).tolist(), strict=True):
            odds[i][p] = value
    return tuple(odds)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tried:
    """What is tried at one place: tokens that some record holds there, in some of the records, and random ones in all.

    Attributes:
        records: those that are long enough; ``own``: the column of each one's own token.
        which: which token is tried in which record.
    """

    records: tuple[int, ...]
    proposed: Int64[Tensor, " tokens"]
    own: Int64[Tensor, " records"]
    which: Bool[Tensor, "records tokens"]
    random: Int64[Tensor, " random"]

    @staticmethod
    def of(records: Records, place: int, vocab_size: int, rng: torch.Generator) -> _Tried:
        going = tuple(i for i, ids in enumerate(records) if len(ids) > place)
        proposed, own = torch.stack([records[i][place] for i in going]).unique(return_inverse=True)
        which = torch.zeros(len(going), len(proposed), dtype=torch.bool, device=own.device)
        for shift in range(1, min(len(going), _EXCHANGED + 1)):
            which[torch.arange(len(going)), own.roll(-shift)] = True
        which[torch.arange(len(going)), own] = False
        each = max(_RANDOM, math.ceil(_POOLED / len(going)))
        return _Tried(
            records=going,
            proposed=proposed,
            own=own,
            which=which,
            random=torch.randint(vocab_size, (each,), generator=rng).to(own.device),
        )

    def options(self, record: int) -> Int64[Tensor, " tokens"]:
        return torch.cat((self.proposed[self.which[self.records.index(record)]], self.random))

    def table(self, scored: Sequence[_Scored]) -> _Table:
        count = len(self.random)
        shown = torch.stack([one.free[len(one.free) - count :].mean() for one in scored])
        lead = shown.new_zeros(self.which.shape)
        for row, one in enumerate(scored):
            lead[row, self.which[row]] = one.free[: len(one.free) - count] - shown[row]
        return _Table(
            which=self.which,
            own=self.own,
            lead=lead,
            own_lead=torch.stack([one.own_free for one in scored]) - shown,
            strangers=torch.stack([one.given[len(one.given) - count :] for one in scored]),
            given=torch.stack([one.own_given for one in scored]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scored:
    """Λ of a record as it is and with each of the options at one place: nothing else given (free), or the other records."""

    own_free: Float[Tensor, ""]
    own_given: Float[Tensor, ""]
    free: Float[Tensor, " options"]
    given: Float[Tensor, " options"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """All records at one place. Leads are Λ above what random tokens show in the same record, nothing else given."""

    which: Bool[Tensor, "records tokens"]
    own: Int64[Tensor, " records"]
    lead: Float[Tensor, "records tokens"]
    own_lead: Float[Tensor, " records"]
    strangers: Float[Tensor, "records random"]
    given: Float[Tensor, " records"]

    def log_odds_against(self, vocab_size: int) -> Float[Tensor, " records"]:
        others = (self.lead - self.own_lead.unsqueeze(1)).masked_fill(~self.which, -math.inf).clamp(max=2 * CLEAR).exp()
        random = vocab_size * self._random()
        return (others.sum(1) + random + len(self.own) * self._elsewhere()).clamp(min=math.exp(-2 * CLEAR)).log()

    def _random(self) -> Float[Tensor, " records"]:
        """Chance that a random token comes as high."""
        records, each = self.strangers.shape
        center, freedom = self.strangers.mean(1), records * (each - 1)
        spread = _spread(self.strangers - center.unsqueeze(1), freedom)
        return _tail((self.given - center) / (spread * math.sqrt(1 + 1 / each)), freedom)

    def _elsewhere(self) -> Float[Tensor, " records"]:
        """Chance that a token of another record comes as high: from the records where it is tried and does not belong."""
        times = self.which.sum(0)
        freedom = int((times - 1).clamp(min=0).sum())
        center = (self.lead * self.which).sum(0) / times.clamp(min=1)
        spread = _spread((self.lead - center) * self.which, freedom)
        known = times[self.own]
        z = (self.own_lead - center[self.own]) / (spread * (1 + 1 / known.clamp(min=1)).sqrt())
        return _tail(z, freedom).where(known > 0, 0.0)


def _spread(differences: Tensor, freedom: int) -> float:
    """Their standard deviation; at least one, that of a log-likelihood ratio of one direction."""
    return max(1.0, math.sqrt(float(differences.square().sum()) / max(1, freedom)))


def _tail(z: Float[Tensor, " records"], freedom: int) -> Float[Tensor, " records"]:
    return torch.from_numpy(student.sf(z.cpu().numpy(), freedom)).to(z) if freedom else torch.zeros_like(z)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Law:
    preferred: tuple[GradientLikelihood, ...]
    model: Model

    def inputs(self, ids: Int64[Tensor, "sentences length"]) -> list[Float[Tensor, "sentences length features"]]:
        """Inputs of unit length of every place."""
        paths = [place.path for place in self.preferred]
        seen = linear_inputs(self.model.subject, paths, ids, parameters=self.model.parameters)
        return [torch.nn.functional.normalize(seen[path].double(), dim=-1) for path in paths]

    def exchanged(
        self, index: int, ids: Int64[Tensor, " length"], tried: Sequence[_Tried], others: Sequence[list[Tensor]]
    ) -> list[_Scored]:
        """Λ of a record with each option at each place."""
        given = [_Given.of([rows[i][0] for rows in others], place) for i, place in enumerate(self.preferred)]
        alone = [_Given.of([], place) for place in self.preferred]
        options = [each.options(index) for each in tried[: len(ids)]]
        sentences = ids.repeat(1 + sum(len(tokens) for tokens in options), 1)
        at = torch.cat([torch.full_like(tokens, p) for p, tokens in enumerate(options)])
        sentences[torch.arange(1, len(sentences)), at] = torch.cat(options)
        free, fixed = torch.zeros(2, len(sentences), dtype=torch.float64, device=ids.device)
        width = max(place.root.shape[0] for place in self.preferred)
        for part in chunks(len(sentences), len(ids) * width * _BUFFERS):
            for rows, lone, among in zip(self.inputs(sentences[part]), alone, given, strict=True):
                free[part] += lone.score(rows)
                fixed[part] += among.score(rows)
        counts = [len(tokens) for tokens in options]
        parts = zip(free[1:].split(counts), fixed[1:].split(counts), strict=True)
        return [_Scored(own_free=free[0], own_given=fixed[0], free=a, given=b) for a, b in parts]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Given:
    """One place, with orthonormal bases of what the other records explain, plainly and in the metric of C⁻¹."""

    root: Float[Tensor, "features features"]
    plain: Float[Tensor, "features rows"]
    metric: Float[Tensor, "features rows"]
    columns: int

    @staticmethod
    def of(others: Sequence[Float[Tensor, "length features"]], place: GradientLikelihood) -> _Given:
        root = place.root.double()
        rows = torch.cat(list(others)) if others else root[:0]
        return _Given(
            root=root,
            plain=frame_of(rows, cut=_DEPENDENT, relative=True),
            metric=frame_of(rows @ root, cut=_DEPENDENT, relative=True),
            columns=place.gradient.shape[1],
        )

    def score(self, rows: Float[Tensor, "sentences length features"]) -> Float[Tensor, " sentences"]:
        return self.columns * (_log_volume(rows, self.plain) - _log_volume(rows @ self.root, self.metric))


def _log_volume(
    rows: Float[Tensor, "sentences length features"], frame: Float[Tensor, "features rank"]
) -> Float[Tensor, " sentences"]:
    """½ log det of the Gram matrix of what the rows have outside the frame."""
    own = outside(rows, frame)
    gram = own @ own.transpose(1, 2)
    return torch.linalg.eigvalsh(gram).clamp(min=_DEPENDENT**2).log().sum(1) / 2
