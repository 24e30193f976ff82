"""What ``audit`` does more when the swept defense has a chain of bounds: the same noise levels, the same data, the same
attacks, beside what anyone could recover. Must not know how an audit runs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradleak.cli.verbs.bound import bound_progress
from gradleak.core.errors import SpecError, UnknownNameError
from gradleak.harness.bounds.candidate_lists import PRIORS, CandidatePrior, Wanted, make_prior
from gradleak.harness.bounds.chain import MEASURED, Settings, bound
from gradleak.harness.bounds.release import laws
from gradleak.harness.request import catalogue
from gradleak.harness.request.prepare import Prepared
from gradleak.harness.request.sources import PoolSource
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining

ATTACKS = "span"
"""Beside the nearest candidate, which reads the list, where the audit names none: an exact attack that does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounding:
    """A chain of bounds as it was asked for, checked as far as no model is needed.

    Attributes:
        attacks: as typed for the audit, or ``ATTACKS``.
    """

    prior: str
    candidates: int | None
    measured: int
    template: str
    knobs: tuple[str, ...]
    attacks: str

    @staticmethod
    def read(
        prior: str | None,
        *,
        candidates: int | None,
        measured: int | None,
        frontier: tuple[str, tuple[str, ...]] | None,
        attacks: str | None,
    ) -> Bounding | None:
        """None if no chain is asked for.

        Raises:
            SpecError: if options are missing or do not go together. UnknownNameError: for an unknown prior.
        """
        if prior is None:
            given = {"--candidates": candidates, "--measured": measured}
            alone = [name for name, value in given.items() if value is not None]
            if alone:
                raise SpecError(f"{alone[0]} belongs to --bound. Give --bound sentences too.")
            return None
        if prior not in PRIORS:
            raise UnknownNameError("prior", prior, PRIORS)
        if frontier is None:
            raise SpecError(
                "--bound follows the noise of --frontier. Give --frontier 'dpsgd(max_norm=1.0, noise_multiplier={knob})' and "
                "--knobs 0.1,0.3,1 too, or run `gradleak bound` by itself."
            )
        template, knobs = frontier
        return Bounding(
            prior=prior,
            candidates=candidates,
            measured=MEASURED if measured is None else measured,
            template=template,
            knobs=knobs,
            attacks=attacks or ATTACKS,
        )

    def checked(self, prepared: Prepared) -> Prepared:
        """The audit with the command that repeats it.

        Raises:
            SpecError: if more than one gradient is shared.
            UsageError: if the defense has no chain, or the data do not fit the prior.
        """
        if prepared.plan.share != dataclasses.asdict(LocalTraining()):
            raise SpecError("--bound is for one shared gradient. Leave --share out, or --bound.")
        settings = self._settings(prepared)
        trainer = ClientTrainer(subject=prepared.subject, training=LocalTraining())
        laws(settings.defense, settings.noise_multipliers, trainer, delta=settings.delta)
        self._prior(prepared)
        listed = "" if self.candidates is None else f" --candidates {self.candidates}"
        command = f"{prepared.plan.command} --bound {self.prior}{listed} --measured {self.measured}"
        return replace(prepared, plan=prepared.plan.model_copy(update={"command": command}))

    def run(self, prepared: Prepared, folder: Path, *, quiet: bool) -> dict[str, Any]:
        """Computes what has no line in the folder yet, and returns the chain as plain data."""
        with bound_progress(quiet=quiet, folder=folder) as progress:
            return bound(
                prepared.subject,
                self._prior(prepared),
                self._settings(prepared),
                folder,
                attacks=tuple(catalogue.make_attacks(self.attacks)),
                progress=progress,
            )

    def _settings(self, prepared: Prepared) -> Settings:
        return Settings(
            defense=self.template, noise_multipliers=self.knobs, measured=self.measured, seed=prepared.plan.seed
        )

    def _prior(self, prepared: Prepared) -> CandidatePrior:
        assert isinstance(prepared.source, PoolSource)
        plan = prepared.plan
        wanted = Wanted(count=self.candidates, values=(), max_length=plan.max_length, seed=plan.seed)
        return make_prior(self.prior, prepared.source.pool, prepared.subject, wanted)
