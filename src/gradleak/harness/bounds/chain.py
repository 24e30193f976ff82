"""The sandwich of one model, one prior and one mechanism over noise levels: candidates → Gram matrix → bounds, and beside
them attacks on real releases of the very code that adds the noise. Must not know how it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradleak.core.attack import Attack
from gradleak.core.errors import DataError, UsageError
from gradleak.core.specs import spec_of
from gradleak.harness.bounds.attacks import NEAREST, Game, Measured
from gradleak.harness.bounds.candidate_lists import CandidatePrior
from gradleak.harness.bounds.pixels import ErrorFloor, Floor
from gradleak.harness.bounds.release import ReleaseLaw, laws
from gradleak.harness.bounds.store import BoundFolder, read_bounds
from gradleak.harness.request.fingerprint import fingerprint
from gradleak.harness.running.environment import environment_of
from gradleak.mechanics.client.gram import gram_matrix
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject
from gradleak.privacy.accounting import reconstruction
from gradleak.privacy.auditing.conformance import Conformance, conform
from gradleak.privacy.bounds import bound_chain
from gradleak.privacy.bounds.bound_chain import Rung
from gradleak.privacy.bounds.candidates import Candidates, Matrix

NOISE_MULTIPLIERS = ("0.05", "0.1", "0.2", "0.3", "0.5", "1", "2")
DEFENSE = "clip(max_norm=1.0)+gaussian(noise_multiplier={knob})"
MEASURED = 30

Progress = Callable[[float, str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the chain is computed for.

    Attributes:
        defense: the mechanism, with ``{knob}`` where its noise multiplier stands; noise_multipliers: what stands there, as typed.
        releases: T, releases of the same record at the same weights.
        delta: at which ε is stated.
        trials: simulated releases for the Bayes rate at each noise level.
        measured: secrets whose real releases are attacked at each noise level; 0 to leave the attacks out.
        confidence: of every interval.
        seed: of every draw.

    Raises:
        UsageError: for a value out of range.
    """

    defense: str = DEFENSE
    noise_multipliers: tuple[str, ...] = NOISE_MULTIPLIERS
    releases: int = 1
    delta: float = 1e-5
    trials: int = 20_000
    measured: int = MEASURED
    confidence: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, holds, wanted in (
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One noise level.

    Attributes:
        defense: its name, as records of an audit spell it. claim: ε with everything it rests on.
        rung: the chain. measured: attacks on real releases. conformance: what they say about the claim.
        floor: for pictures, the error that no attacker beats; None for texts, or where the record comes and goes by a coin.
    """

    defense: str
    claim: Mapping[str, Any]
    rung: Rung
    measured: tuple[Measured, ...]
    conformance: Conformance | None
    floor: Floor | None
    findings: tuple[str, ...]
    violated: bool


def bound(
    subject: Subject,
    prior: CandidatePrior,
    settings: Settings,
    folder: Path,
    *,
    attacks: tuple[Attack, ...] = (),
    progress: Progress = lambda fraction, message: None,
) -> dict[str, Any]:
    """Computes the chain at every noise level that the folder does not hold yet, and attacks real releases.

    A violation of the order ends the run after its noise level: what follows would be numbers of a broken chain.

    Returns:
        The chain as plain data, as ``read_bounds`` reads it; an infinite ε is None.

    Raises:
        ModelError: if the model's gradients have no factors.
        DataError: if all candidates have the same gradient.
        PlanChangedError: if the folder holds bounds of this prior for another plan.
    """
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    levels = laws(settings.defense, settings.noise_multipliers, trainer, delta=settings.delta)
    with BoundFolder(folder, prior.name, plan_of(subject, prior, settings, levels[0], attacks)) as store:
        missing = [law for law in levels if law.noise_multiplier not in _done(store)]
        if missing and not is_violated(store.steps):
            share = 0.5 if settings.measured else 0.9
            gram = gram_matrix(
                subject, prior.batch, trainer.names(), progress=lambda f, message: progress(share * f, message)
            ).numpy()
            candidates, owner = clipped(gram, prior, levels[0].max_norm)
            if store.facts is None:
                store.write_facts(_facts(gram, candidates, levels[0].max_norm))
            game = Game.of(trainer, prior.batch, owner, attacks, settings.seed) if settings.measured else None
            floor = _floor(trainer, prior, levels[0], settings)
            for place, law in enumerate(missing):
                base, width = share + (1 - share) * place / len(missing), (1 - share) / len(missing)
                step = _step(
                    candidates, game, floor, settings, law, lambda f, m, b=base, w=width: progress(b + w * f, m)
                )
                store.write_step(_finite(asdict(step)))
                if step.violated:
                    break
    return next(found for found in read_bounds(folder) if found["prior"]["name"] == prior.name)


def _floor(trainer: ClientTrainer, prior: CandidatePrior, law: ReleaseLaw, settings: Settings) -> ErrorFloor | None:
    """None unless the secret is a picture that every release holds."""
    batch = prior.batch
    differ = bool((batch.inputs != batch.inputs[:1]).any())
    if batch.modality != "image" or not differ or law.sampling_rate < 1.0:
        return None
    return ErrorFloor.of(trainer, batch, law.max_norm, settings.seed)


def is_violated(steps: list[dict[str, Any]]) -> bool:
    return any(step["violated"] for step in steps)


def plan_of(
    subject: Subject, prior: CandidatePrior, settings: Settings, law: ReleaseLaw, attacks: tuple[Attack, ...]
) -> dict[str, Any]:
    """Everything that changes a line, by content: a folder that holds another plan is refused."""
    batch = prior.batch
    tensors = (("inputs", batch.inputs), ("mask", batch.mask), ("labels", batch.labels))
    others = (
        "the other records of the batch"
        if law.claim["unit"].startswith("one record")
        else "the record is alone in its batch,"
    )
    return {
        "model": subject.name,
        "weights": fingerprint(subject.module.named_parameters()),
        "loss": subject.loss.name,
        "prior": {
            "name": prior.name,
            "description": prior.description,
            "listed": batch.size,
            "fingerprint": fingerprint(tensors),
        },
        "view": f"the server sees each release; {others} and the model are known to it",
        "settings": {**asdict(settings), "attacks": [str(spec_of(attack)) for attack in attacks]},
        "environment": environment_of(subject),
    }


def clipped(gram: Matrix, prior: CandidatePrior, max_norm: float) -> tuple[Candidates, np.ndarray]:
    """The candidates after the clip, in units of C, and the group of each.

    Raises:
        DataError: if all of them have the same gradient.
    """
    norms = _norms(gram)
    scale = np.minimum(1.0, max_norm / np.maximum(norms, np.finfo(np.float64).tiny)) / max_norm
    candidates, owner = Candidates.uniform(gram * np.outer(scale, scale)).grouped()
    if candidates.count < 2:
        raise DataError(
            f"All {prior.batch.size} candidates have the same gradient: there is nothing to tell apart, and no release of it "
            "can. Choose another prior or other data."
        )
    return candidates, owner


def _norms(gram: Matrix) -> Matrix:
    return np.sqrt(np.maximum(gram.diagonal(), 0.0))


def _facts(gram: Matrix, candidates: Candidates, max_norm: float) -> dict[str, Any]:
    norms = _norms(gram)
    return {
        "prior": {"distinct": candidates.count, "kappa": candidates.kappa, "bits": candidates.entropy_bits},
        "clip": {
            "max_norm": max_norm,
            "shortened": int((norms > max_norm).sum()),
            "norms": [float(q) for q in np.quantile(norms, [0.0, 0.25, 0.5, 0.75, 1.0])],
        },
    }


def _done(store: BoundFolder) -> set[float]:
    return {step["rung"]["noise_multiplier"] for step in store.steps}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(
    candidates: Candidates,
    game: Game | None,
    floor: ErrorFloor | None,
    settings: Settings,
    law: ReleaseLaw,
    progress: Progress,
) -> Step:
    z = law.noise_multiplier
    rng = np.random.default_rng([settings.seed, int.from_bytes(np.float64(z).tobytes(), "little")])
    rung = bound_chain.rung(
        candidates,
        z,
        rng,
        releases=settings.releases,
        sampling_rate=law.sampling_rate,
        delta=settings.delta,
        trials=settings.trials,
        confidence=settings.confidence,
    )
    measured: tuple[Measured, ...] = ()
    if game is not None:
        measured = game.play(
            law,
            games=settings.measured,
            releases=settings.releases,
            confidence=settings.confidence,
            progress=progress,
        )
    rates = {each.attack: each.rate for each in measured if each.rate is not None}
    findings = list(rung.advice())
    findings += [
        f"{name}: attack far from optimal; do not read its failure as safety"
        for name, rate in rates.items()
        if bound_chain.is_weak(rate, rung)
    ]
    broken = bound_chain.violations(rung, rates)
    findings += [violation.diagnosis() for violation in broken]
    return Step(
        defense=law.defense,
        claim=law.claim,
        rung=rung,
        measured=measured,
        conformance=_conformance(rung, candidates.kappa, rates, settings) if NEAREST in rates else None,
        floor=None if floor is None else floor.at(z / math.sqrt(settings.releases)),
        findings=tuple(findings),
        violated=bool(broken),
    )


def _conformance(rung: Rung, kappa: float, rates: Mapping[str, Any], settings: Settings) -> Conformance:
    hits = rates[NEAREST].hits
    return conform(
        hits,
        settings.measured,
        rung.best.success,
        kappa=kappa,
        mu_claimed=_equivalent_mu(rung, kappa),
        significance=1.0 - settings.confidence,
    )


def _equivalent_mu(rung: Rung, kappa: float) -> float:
    """μ of the Gaussian release that allows as much success at this κ: √T/z where every release holds the record."""
    if rung.sampling_rate == 1.0:
        return math.sqrt(rung.releases) / rung.noise_multiplier
    return reconstruction.mu_for(kappa, min(rung.mechanism, 1.0 - 1e-15))
