"""What ``audit`` does more when a defense's knob is swept. Must not know how an audit runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradleak.cli.common.output import err
from gradleak.core.errors import SpecError
from gradleak.core.specs import build
from gradleak.harness.request.prepare import Prepared
from gradleak.harness.running.store import RunFolder
from gradleak.harness.utility.frontier import PLACEHOLDER, Frontier, check_unchanged, measure, read_knobs
from gradleak.harness.utility.tasks import DEFAULT_TASK, make_task
from gradleak.harness.utility.training import Schedule, Trained
from gradleak.mechanics.client.trainer import LocalTraining


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A frontier as it was asked for, checked as far as no model is needed."""

    template: str
    knobs: tuple[str, ...]
    schedule: Schedule

    @staticmethod
    def read(
        template: str | None,
        knobs: str | None,
        defenses: Sequence[str] | None,
        *,
        rounds: int | None,
        seeds: int | None,
    ) -> Wanted | None:
        """None if no frontier is asked for.

        Raises:
            SpecError: if options are missing or do not go together, or a value is out of range.
        """
        if template is None:
            given = {"--knobs": knobs, "--utility-rounds": rounds, "--utility-seeds": seeds}
            alone = [name for name, value in given.items() if value is not None]
            if alone:
                raise SpecError(
                    f"{alone[0]} belongs to --frontier. Give --frontier 'gaussian(relative_std={{knob}})' too."
                )
            return None
        if knobs is None:
            raise SpecError("--frontier needs the values of its knob. Give --knobs, such as --knobs 0.001,0.01,0.1.")
        if defenses:
            raise SpecError("--frontier sweeps one defense and takes the place of --defenses. Give one of the two.")
        asked: dict[str, Any] = {"rounds": rounds, "seeds": seeds}
        schedule = replace(Schedule(), **{name: value for name, value in asked.items() if value is not None})
        return Wanted(template=template, knobs=read_knobs(template, knobs), schedule=schedule)

    def chains(self) -> tuple[str, ...]:
        return tuple(self.template.replace(PLACEHOLDER, knob) for knob in self.knobs)

    def checked(self, prepared: Prepared, folder: Path) -> Prepared:
        """The audit with the command that repeats it.

        Raises:
            PlanChangedError: if the folder holds another frontier.
            DataError: if the data of the short training are not installed.
        """
        check_unchanged(folder, self._frontier(prepared))
        make_task(DEFAULT_TASK[prepared.subject.modality], prepared.plan.seed)
        base = prepared.plan.model_copy(update={"defenses": ((),)}).command_line()
        sweep = f" --frontier {shlex.quote(self.template)} --knobs {','.join(self.knobs)}"
        sweep += f" --utility-rounds {self.schedule.rounds} --utility-seeds {self.schedule.seeds}"
        command = base.replace(" --defenses none", sweep)
        return replace(prepared, plan=prepared.plan.model_copy(update={"command": command}))

    def measure(self, prepared: Prepared, folder: Path, *, quiet: bool) -> None:
        """Trains what has no line in the folder yet."""
        frontier = self._frontier(prepared)

        def say(trained: Trained, done: int, total: int) -> None:
            result = trained.reason if trained.accuracy is None else f"accuracy {trained.accuracy:.3f}"
            if not quiet:
                err().print(
                    f"training [{done}/{total}] {trained.defense}, seed {trained.seed}: {result}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )

        with RunFolder(folder, prepared.plan):
            measure(folder, frontier, build(LocalTraining, prepared.plan.share), prepared.plan.seed, say)

    def _frontier(self, prepared: Prepared) -> Frontier:
        return Frontier.of(self.template, self.knobs, DEFAULT_TASK[prepared.subject.modality], self.schedule)
