"""The chain of bounds speaks of one clipped gradient with Gaussian noise; a channel is a tuple of stages. Reads the first from
the second, by the very description that the accountant reads, so that bound, claim and code speak of one mechanism.
Must not know any stage by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradleak.core.channel import Channel
from gradleak.core.errors import SpecError, UsageError
from gradleak.core.stage import Run, Stage, TrainingStage
from gradleak.harness.request import catalogue
from gradleak.harness.request.plan import Call, chain_name
from gradleak.harness.request.prepare import read_chain
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.privacy.claim import claim, plans_of
from gradleak.privacy.plan.plan import Plan

PLACEHOLDER = "{knob}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseLaw:
    """One release of one record, the others known: b·clip(g, C) + z·C·N(0, I), b = 1 with probability q.

    Attributes:
        channel: what runs. defense: its name, as records of an audit spell it.
        claim: ε with everything it rests on, for one release, as records hold it.
        max_norm: C. noise_multiplier: z. sampling_rate: q.
    """

    channel: Channel
    defense: str
    claim: dict[str, Any]
    max_norm: float
    noise_multiplier: float
    sampling_rate: float

    @staticmethod
    def of(chain: Sequence[Call], trainer: ClientTrainer, *, delta: float) -> ReleaseLaw:
        """Reads a chain of defenses.

        Raises:
            UsageError: if the chain is no clip with Gaussian noise in units of it, or draws batches of a fixed size.
        """
        name = chain_name(tuple(chain))
        channel = Channel(trainer=trainer, stages=tuple(catalogue.make("defenses", call.spec()) for call in chain))
        run = Run(steps=1, tensors=len(trainer.names()), sizes=(1,))
        plans = [plan for plan in plans_of(channel.stages, delta=delta, run=run) if plan.clip in ("example", "update")]
        max_norm = _clip_norm(channel.stages)
        if not plans or max_norm is None:
            raise UsageError(
                f"{name} is no clipped gradient with Gaussian noise in units of the clip, so there is no chain of bounds. Use "
                "dpsgd(max_norm=1.0, noise_multiplier={knob}) or clip(max_norm=1.0)+gaussian(noise_multiplier={knob})."
            )
        plan = min(plans, key=lambda each: each.least_noise)
        _check(plan, name)
        return ReleaseLaw(
            channel=channel,
            defense=name,
            claim=claim(channel.stages, delta=delta, run=run),
            max_norm=max_norm,
            noise_multiplier=plan.least_noise,
            sampling_rate=plan.sampling_rate,
        )


def laws(template: str, knobs: Sequence[str], trainer: ClientTrainer, *, delta: float) -> tuple[ReleaseLaw, ...]:
    """The law at every value of the knob, by ascending noise.

    Raises:
        SpecError: if the template has no place for the knob.
        UsageError: as ``ReleaseLaw.of``; or if the knob is not the noise multiplier.
    """
    if PLACEHOLDER not in template:
        raise SpecError(
            f"The defense {template!r} has no {PLACEHOLDER}. Write it where the noise multiplier stands, for example "
            f"'dpsgd(max_norm=1.0, noise_multiplier={PLACEHOLDER})'."
        )
    found = [ReleaseLaw.of(read_chain(template.replace(PLACEHOLDER, knob)), trainer, delta=delta) for knob in knobs]
    levels = [law.noise_multiplier for law in found]
    if len(set(levels)) < len(levels) or len({law.max_norm for law in found}) > 1:
        raise UsageError(
            f"The chart of bounds is drawn over the noise multiplier, and {template!r} does not sweep that alone. Let "
            f"{PLACEHOLDER} be the noise multiplier and fix the clip."
        )
    return tuple(sorted(found, key=lambda law: law.noise_multiplier))


def _clip_norm(stages: tuple[Stage, ...]) -> float | None:
    """C of the last clip, which is what noise multipliers are in units of."""
    norms = [stage.example_bound() if isinstance(stage, TrainingStage) else stage.norm_bound() for stage in stages]
    return next((norm for norm in reversed(norms) if norm is not None), None)


def _check(plan: Plan, name: str) -> None:
    if plan.least_noise == 0:
        raise UsageError(
            f"{name} adds no noise. The noise multiplier must be positive: without noise there is no bound, and every candidate "
            "with a gradient of its own is recovered."
        )
    if plan.steps != 1 or plan.sampling not in ("none", "poisson") or plan.view == "secure_aggregation":
        raise UsageError(
            f"{name} draws batches of a fixed size, takes several steps, or is joined with others. The chain of bounds is for "
            "one release, of all records or of those that a coin chose (batches=poisson)."
        )
