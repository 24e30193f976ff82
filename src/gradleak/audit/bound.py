"""Why: the sandwich of one model, one prior and one clip over noise levels: candidates → Gram matrix → bounds, and beside
them an attack on real releases of the very code that adds the noise. Must not know how it is shown.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradleak.audit.candidate_priors import CandidatePrior
from gradleak.audit.environment import environment_of
from gradleak.audit.store import write_atomically
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.errors import DataError, UsageError
from gradleak.core.rng import derive
from gradleak.defenses.clip import Clip
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.gram import CandidateGradients, gram_matrix
from gradleak.mechanics.training import ClientTrainer, LocalTraining
from gradleak.models import Subject
from gradleak.privacy import sandwich
from gradleak.privacy.bayes import Rate
from gradleak.privacy.candidates import Candidates
from gradleak.privacy.conformance import Conformance, conform
from gradleak.privacy.sandwich import Rung

SCHEMA_VERSION = 1
NOISE_MULTIPLIERS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
MAX_NORM = 1.0
MEASURED = 30
ATTACK = "nearest candidate"
VIEW = "the server sees each release; the other records of the batch and the model are known to it"

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the chain is computed for.

    Attributes:
        max_norm: C of the clip.
        noise_multipliers: z, each positive.
        releases: T, releases of the same record at the same weights.
        delta: at which ε is stated.
        trials: simulated releases for the Bayes rate at each noise level.
        measured: real releases attacked at each noise level; 0 to leave the attack out.
        confidence: of every interval.
        seed: of every draw.

    Raises:
        UsageError: for a value out of range.
    """

    max_norm: float = MAX_NORM
    noise_multipliers: tuple[float, ...] = NOISE_MULTIPLIERS
    releases: int = 1
    delta: float = 1e-5
    trials: int = 20_000
    measured: int = MEASURED
    confidence: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, holds, wanted in (
            ("max_norm", self.max_norm, self.max_norm > 0 and math.isfinite(self.max_norm), "positive and finite"),
            ("releases", self.releases, self.releases >= 1, "at least 1"),
            ("delta", self.delta, 0 < self.delta < 1, "between 0 and 1"),
            ("trials", self.trials, self.trials >= 100, "at least 100"),
            ("measured", self.measured, self.measured >= 0, "at least 0"),
            ("confidence", self.confidence, 0.5 <= self.confidence < 1, "at least 0.5 and below 1"),
        ):
            if not holds:
                raise UsageError(f"{name}={value} is out of range. It must be {wanted}.")
        if not self.noise_multipliers:
            raise UsageError("Give at least one noise multiplier, such as 0.5.")
        for z in self.noise_multipliers:
            if not (z > 0 and math.isfinite(z)):
                raise UsageError(
                    f"A noise multiplier of {z} is out of range. It must be positive: without noise there is no bound, and "
                    "every candidate with a gradient of its own is recovered."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One noise level: the chain, and the attack on real releases with what it says about the claim, if any was made."""

    rung: Rung
    measured: Rate | None
    conformance: Conformance | None
    findings: tuple[str, ...]
    violated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The sandwich of one prior.

    Attributes:
        prior: its name and description, K as listed, the number of candidates that differ, κ and bits to leak.
        clip: C, how many candidates it shortens, and their norms' quartiles.
        steps: one per noise level, ascending.
    """

    model: str
    prior: Mapping[str, Any]
    clip: Mapping[str, Any]
    settings: Settings
    steps: tuple[Step, ...]
    environment: Mapping[str, Any]

    def violated(self) -> bool:
        return any(step.violated for step in self.steps)

    def to_plain(self) -> dict[str, Any]:
        """Plain data; an infinite ε is None."""
        return {"schema_version": SCHEMA_VERSION, "view": VIEW, **_finite(dataclasses.asdict(self))}


def bound(
    subject: Subject, prior: CandidatePrior, settings: Settings, progress: Progress = lambda fraction, message: None
) -> Bounds:
    """Computes the chain at every noise level, and attacks real releases.

    A violation of the order ends the run after its noise level: what follows would be numbers of a broken chain.

    Raises:
        ModelError: if the model's gradients have no factors.
        DataError: if all candidates have the same gradient.
    """
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    share = 0.5 if settings.measured else 0.9
    gram = gram_matrix(
        subject, prior.batch, trainer.names(), progress=lambda f, message: progress(share * f, message)
    ).numpy()
    norms = np.sqrt(np.maximum(gram.diagonal(), 0.0))
    scale = np.minimum(1.0, settings.max_norm / np.maximum(norms, np.finfo(np.float64).tiny)) / settings.max_norm
    candidates, owner = Candidates.uniform(gram * np.outer(scale, scale)).grouped()
    if candidates.count < 2:
        raise DataError(
            f"All {prior.batch.size} candidates have the same gradient: there is nothing to tell apart, and no release of it "
            "can. Choose another prior or other data."
        )
    attacker = _Attacker.of(trainer, prior.batch, settings.max_norm, owner) if settings.measured else None
    steps: list[Step] = []
    levels = sorted(set(settings.noise_multipliers))
    for place, z in enumerate(levels):
        base, width = share + (1 - share) * place / len(levels), (1 - share) / len(levels)
        steps.append(_step(candidates, attacker, settings, z, lambda f, m, b=base, w=width: progress(b + w * f, m)))
        if steps[-1].violated:
            break
    return Bounds(
        model=subject.name,
        prior={
            "name": prior.name,
            "description": prior.description,
            "listed": prior.batch.size,
            "distinct": candidates.count,
            "kappa": candidates.kappa,
            "bits": candidates.entropy_bits,
        },
        clip={
            "max_norm": settings.max_norm,
            "shortened": int((norms > settings.max_norm).sum()),
            "norms": [float(q) for q in np.quantile(norms, [0.0, 0.25, 0.5, 0.75, 1.0])],
        },
        settings=settings,
        steps=tuple(steps),
        environment=environment_of(subject),
    )


def save(bounds: Bounds, folder: Path) -> Path:
    """Writes ``bounds-PRIOR.json`` into a folder, which may be that of an audit, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bounds-{bounds.prior['name']}.json"
    write_atomically(path, (json.dumps(bounds.to_plain(), indent=2, allow_nan=False) + "\n").encode())
    return path


def read_bounds(folder: Path) -> tuple[dict[str, Any], ...]:
    """What ``save`` wrote into a folder, by the prior's name; empty if nothing.

    Raises:
        DataError: if a file cannot be read or has another schema version.
    """
    found = []
    for path in sorted(folder.glob("bounds-*.json")):
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is not JSON: {error}. Run `gradleak bound` again.") from error
        version = plain.get("schema_version") if isinstance(plain, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(f"{path} has schema version {version}, this gradleak reads {SCHEMA_VERSION}. Run it again.")
        found.append(plain)
    return tuple(found)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(candidates: Candidates, attacker: _Attacker | None, settings: Settings, z: float, progress: Progress) -> Step:
    rng = np.random.default_rng([settings.seed, int.from_bytes(np.float64(z).tobytes(), "little")])
    rung = sandwich.rung(
        candidates,
        z,
        rng,
        releases=settings.releases,
        delta=settings.delta,
        trials=settings.trials,
        confidence=settings.confidence,
    )
    measured, conformance = None, None
    findings = list(rung.advice())
    if attacker is not None:
        hits = attacker.hits(settings, z, progress)
        measured = Rate.of(hits, settings.measured, settings.confidence)
        conformance = conform(
            hits,
            settings.measured,
            rung.best.success,
            kappa=candidates.kappa,
            mu_claimed=math.sqrt(settings.releases) / z,
            significance=1.0 - settings.confidence,
        )
        if sandwich.is_weak(measured, rung):
            findings.append("attack far from optimal; do not read its failure as safety")
    broken = sandwich.violations(rung, {} if measured is None else {ATTACK: measured})
    findings += [violation.diagnosis() for violation in broken]
    return Step(rung=rung, measured=measured, conformance=conformance, findings=tuple(findings), violated=bool(broken))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attacker:
    """Names the candidate whose clipped gradient is nearest to the mean release: optimal for a uniform prior.

    It works on whole updates as the channel's own clip and noise made them, and never on the Gram matrix, so that a
    mistake in either shows as a difference.
    """

    trainer: ClientTrainer
    batch: Batch
    gradients: CandidateGradients
    scale: Tensor
    half_squares: Tensor
    owner: np.ndarray

    @staticmethod
    def of(trainer: ClientTrainer, batch: Batch, max_norm: float, owner: np.ndarray) -> _Attacker:
        rng = torch.Generator()
        plain = [trainer.update(_record(batch, place), rng).norm() for place in range(batch.size)]
        norms = torch.tensor(plain, dtype=torch.float64)
        scale = (max_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
        return _Attacker(
            trainer=trainer,
            batch=batch,
            gradients=CandidateGradients.of(trainer.subject, batch, trainer.names()),
            scale=scale,
            half_squares=(scale * norms).square() / 2,
            owner=owner,
        )

    def hits(self, settings: Settings, z: float, progress: Progress) -> int:
        """How many of the real releases at noise multiplier z it names rightly; equal candidates count as one."""
        stages = (Clip(max_norm=settings.max_norm), Gaussian(noise_multiplier=z))
        channel = Channel(trainer=self.trainer, stages=stages)
        found = 0
        for trial in range(settings.measured):
            rng = derive(settings.seed, "bound", repr(z), trial)
            truth = int(torch.randint(self.batch.size, (), generator=rng))
            record = _record(self.batch, truth)
            inner = torch.stack(
                [self.gradients.inner(channel.observe(record, rng)) for _ in range(settings.releases)]
            ).mean(0)
            guess = int((inner * self.scale - self.half_squares).argmax())
            found += bool(self.owner[guess] == self.owner[truth])
            progress((trial + 1) / settings.measured, f"releases at noise multiplier {z:g}")
        return found


def _record(batch: Batch, place: int) -> Batch:
    """One candidate as the client holds it, without the padding that the list needed."""
    one = slice(place, place + 1)
    length = int(batch.mask[place].sum())
    labels = batch.labels[one] if batch.labels.ndim == 1 else batch.labels[one, :length]
    return Batch(inputs=batch.inputs[one, :length], mask=batch.mask[one, :length], labels=labels)
