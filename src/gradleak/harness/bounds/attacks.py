"""The chain's lowest slice is measured: real releases of the code that is audited, and attacks that see nothing else.
Holds private data. Must not know bounds.

Attacks propose records, bags of tokens or rankings; a list of candidates asks for one name. Any rule that sees only the
proposal is a part of the attack, so what bounds every attacker bounds it too. Must not know the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Observation, find_threat, knowledge_of
from gradleak.core.rng import derive
from gradleak.core.specs import spec_of
from gradleak.core.update import Update
from gradleak.harness.bounds.release import ReleaseLaw
from gradleak.harness.running.cell import propose
from gradleak.mechanics.client.gram import CandidateGradients
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.privacy.bounds.bayes import Rate
from gradleak.privacy.bounds.poisson import Sampling, log_likelihoods

NEAREST = "nearest candidate"
THREAT = "closed_world"

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """How often one attack named the secret.

    Attributes:
        rate: with its exact interval; None if the attack does not apply, and then ``reason`` says why.
    """

    attack: str
    rate: Rate | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Game:
    """The candidates, and everything that attacks need and that all noise levels share.

    Attributes:
        records: the candidates as the judge compares records: token ids without padding, or pixels.
        owner: ``[K]``, the group of each candidate: those of equal gradient count as one.
        norms: ``[K]``, of the gradients before the clip.
    """

    trainer: ClientTrainer
    batch: Batch
    records: tuple[Tensor, ...]
    gradients: CandidateGradients
    norms: Tensor
    owner: np.ndarray
    attacks: tuple[Attack, ...]
    seed: int

    @staticmethod
    def of(trainer: ClientTrainer, batch: Batch, owner: np.ndarray, attacks: tuple[Attack, ...], seed: int) -> Game:
        rng = torch.Generator()
        norms = [trainer.update(record_of(batch, place), rng).norm() for place in range(batch.size)]
        return Game(
            trainer=trainer,
            batch=batch,
            records=batch.records(),
            gradients=CandidateGradients.of(trainer.subject, batch, trainer.names()),
            norms=torch.tensor(norms, dtype=torch.float64),
            owner=owner,
            attacks=attacks,
            seed=seed,
        )

    def play(
        self, law: ReleaseLaw, *, games: int, releases: int, confidence: float, progress: Progress
    ) -> tuple[Measured, ...]:
        """Attacks ``games`` secrets, each drawn anew and released ``releases`` times by the channel's own code.

        ``NEAREST`` reads all releases of a secret, attacks of the catalogue the first. What they propose names the candidate
        that is most alike (``naming.named``); a proposal that means several is a miss, candidates of equal gradient are one.
        """
        hits = {NEAREST: 0} | {str(spec_of(attack)): 0 for attack in self.attacks}
        refused: dict[str, str] = {}
        for game in range(games):
            rng = derive(self.seed, "bound", repr(law.noise_multiplier), game)
            truth = int(torch.randint(self.batch.size, (), generator=rng))
            record = record_of(self.batch, truth)
            seen = [law.channel.observe(record, rng) for _ in range(releases)]
            hits[NEAREST] += bool(self.owner[self._nearest(seen, law)] == self.owner[truth])
            for attack in self.attacks:
                name = str(spec_of(attack))
                if name in refused:
                    continue
                found = self._attacked(
                    attack, seen[0], law, derive(self.seed, "bound", name, repr(law.noise_multiplier), game)
                )
                if found.status is Status.NOT_APPLICABLE:
                    refused[name] = found.message
                meant = {int(self.owner[place]) for place in named(found, self.records)}
                hits[name] += meant == {int(self.owner[truth])}
            progress((game + 1) / games, f"releases at noise multiplier {law.noise_multiplier:g}")
        return tuple(
            Measured(attack=name, rate=None, reason=refused[name])
            if name in refused
            else Measured(attack=name, rate=Rate.of(count, games, confidence))
            for name, count in hits.items()
        )

    def _nearest(self, seen: Sequence[Update], law: ReleaseLaw) -> int:
        """The likeliest candidate: optimal for a uniform prior.

        It works on whole updates as the channel's own clip and noise made them, and never on the Gram matrix, so that a
        mistake in either shows as a difference.
        """
        scale = (law.max_norm / self.norms.clamp_min(torch.finfo(torch.float64).tiny)).clamp(max=1.0) / law.max_norm
        # A sampled release is divided by the expected number of records, which is q of one.
        inner = (
            torch.stack([self.gradients.inner(update) for update in seen]) * scale * law.sampling_rate / law.max_norm
        )
        sampling = Sampling(noise_multiplier=law.noise_multiplier, releases=len(seen), rate=law.sampling_rate)
        return int(log_likelihoods(inner.numpy(), (scale * self.norms).square().numpy(), sampling).argmax())

    def _attacked(self, attack: Attack, update: Update, law: ReleaseLaw, rng: torch.Generator) -> Reconstruction:
        """What the attack proposes, told no more than the list: no label, and no length where lengths differ."""
        deployed = law.channel.deployed()
        lengths = self.batch.mask.sum(1) if self.batch.modality == "text" else None
        same = lengths is not None and bool((lengths == lengths[0]).all())
        order = torch.randperm(self.batch.size, generator=rng).tolist()
        facts = {
            "subject": deployed.subject,
            "trainer": deployed,
            "stages": law.channel.stages,
            "batch_size": 1,
            "seq_len": int(lengths[0]) if same and lengths is not None else None,
            "candidates": tuple(self.records[place] for place in order),
        }
        observation = Observation(update=update, knowledge=knowledge_of(find_threat(THREAT), facts))
        return propose(attack, observation, self.batch.modality, rng=rng, clock=Clock())


def record_of(batch: Batch, place: int) -> Batch:
    """One candidate as the client holds it, without the padding that the list needed."""
    one = slice(place, place + 1)
    if batch.modality == "image":
        return Batch(inputs=batch.inputs[one], mask=batch.mask[one], labels=batch.labels[one])
    length = int(batch.mask[place].sum())
    labels = batch.labels[one] if batch.labels.ndim == 1 else batch.labels[one, :length]
    return Batch(inputs=batch.inputs[one, :length], mask=batch.mask[one, :length], labels=labels)


def named(found: Reconstruction, candidates: Sequence[Tensor]) -> tuple[int, ...]:
    """Places of the candidates that a proposal means: several if it cannot tell them apart, none if it says nothing.

    The first of a ranking, as it is; else the candidate that is most alike the first proposed record: for token ids the largest
    share of common tokens 2|a ∩ b| / (|a| + |b|), repetitions counted, and of those the most that agree in their place (where the
    proposal has an order); for pixels the smallest squared distance.
    """
    if found.ranking:
        return tuple(place for place, each in enumerate(candidates) if torch.equal(each, found.ranking[0]))
    if not found.records:
        return ()
    proposal = found.records[0]
    likeness = [_likeness(proposal, each, ordered=found.ordered) for each in candidates]
    best = max(likeness)
    if best[0] == 0.0:
        return ()
    return tuple(place for place, each in enumerate(likeness) if each == best)


def _likeness(proposal: Tensor, candidate: Tensor, *, ordered: bool) -> tuple[float, int]:
    if proposal.is_floating_point():
        if proposal.shape != candidate.shape:
            return 0.0, 0
        return 1.0 / (1.0 + float((proposal.double() - candidate.double()).square().sum())), 0
    one, other = proposal.tolist(), candidate.tolist()
    common = (Counter(one) & Counter(other)).total()
    agreeing = sum(a == b for a, b in zip(one, other, strict=False)) if ordered else 0
    return 2 * common / max(1, len(one) + len(other)), agreeing
