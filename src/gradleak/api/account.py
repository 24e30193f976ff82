"""What a training plan guarantees, what that buys, and which noise a goal needs. Arithmetic: imports no torch, unless a training
is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradleak.harness.utility.noise_cost import TrainingCost
    from gradleak.privacy.accounting.accountant import Guarantee
    from gradleak.privacy.accounting.budget import Reading
    from gradleak.privacy.lint import Finding
    from gradleak.privacy.plan.plan import Plan
    from gradleak.privacy.targets.noise_for_targets import Price
    from gradleak.privacy.targets.targets import Target
    from gradleak.privacy.training_cost.clip_choice import Suggestion

LISTS = (2, 512, 50257)
"""Lengths of the candidate lists for which the chance to name the record is stated: a pair, a page, a vocabulary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipChoice:
    """The clip norm for a noise multiplier, from gradient norms.

    Attributes:
        smoothness: the curvature of the loss that was used; ``smoothness_given`` is False where 1 was assumed.
        clip_norm_range: what the clip norm would be at a hundredth and a hundred times that curvature, which nobody knows well.
    """

    best: Suggestion
    noise_multiplier: float
    smoothness: float
    smoothness_given: bool
    first_loss: float
    clip_norm_range: tuple[float, float]

    def to_plain(self) -> dict[str, Any]:
        return asdict(self.best) | {
            "noise_multiplier": self.noise_multiplier,
            "total": self.best.bound.total,
            "smoothness": self.smoothness,
            "smoothness_given": self.smoothness_given,
            "first_loss": self.first_loss,
            "clip_norm_range": list(self.clip_norm_range),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A plan, accounted for.

    Attributes:
        guarantee: ε at δ with everything it rests on, or why there is none.
        readings: the same noise under other relations and views.
        success: length of a candidate list → largest chance of any attack to name the record in it.
        lint: what is wrong with the plan or with what is claimed of it, the worst first.
        targets: the noise for each target.
        clip: only where gradient norms were given; training: only where one was asked for.
    """

    plan: Plan
    guarantee: Guarantee
    readings: tuple[Reading, ...]
    success: Mapping[int, float]
    lint: tuple[Finding, ...]
    targets: tuple[Price, ...]
    clip: ClipChoice | None = None
    training: TrainingCost | None = None

    def to_plain(self) -> dict[str, Any]:
        """As ``gradleak account --json`` prints it, but for infinities, which stand for no guarantee."""
        return {
            "plan": asdict(self.plan) | {"steps": self.plan.steps},
            "guarantee": asdict(self.guarantee),
            "readings": [asdict(reading) for reading in self.readings],
            "success": {str(length): chance for length, chance in self.success.items()},
            "lint": [asdict(finding) for finding in self.lint],
            "goals": [_price(price) for price in self.targets],
            **({} if self.clip is None else {"clip": self.clip.to_plain()}),
            **({} if self.training is None else {"training": self.training.to_plain()}),
        }


def account(
    plan: Plan | Mapping[str, Any] | str | Path | None = None,
    *,
    saved: str | Path | None = None,
    noise_multiplier: float | None = None,
    sampling_rate: float | None = None,
    steps: int | None = None,
    delta: float | None = None,
    sampling: str | None = None,
    relation: str | None = None,
    view: str | None = None,
    clip: str | None = None,
    target_epsilon: float | None = None,
    target_success: float | None = None,
    candidates: int = 512,
    target_bits: float | None = None,
    compare_targets: bool = False,
    norms: str | Path | Sequence[float] | None = None,
    parameters: int = 1_000_000,
    batch_size: int = 64,
    smoothness: float | None = None,
    first_loss: float = 1.0,
    training: bool = False,
    progress: Callable[[float, str], None] = lambda fraction, message: None,
) -> Account:
    """Accounts for a training plan: ε with everything it rests on, what it buys, what is wrong, and the noise for a target.

    Args:
        plan: a ``Plan``, a TOML file, or its table as a mapping; the arguments below override its keys and suffice alone.
        saved: JSON that Opacus, Flower or a Trainer saved; plan and arguments override its keys.
        noise_multiplier: noise on the sum, in units of the clip norm.
        sampling_rate: share of the records (or clients) in a step, in (0, 1].
        steps: number of noisy steps; 1 if left out.
        delta: δ in (0, 1); 1e-5 if left out.
        sampling: ``"none"``, ``"poisson"`` (with a rate, if left out), ``"fixed"`` or ``"shuffle"``.
        relation: ``"add_or_remove"``, ``"zero_out"`` or ``"replace_one"``.
        view: ``"final_model"``, ``"server_sees_each_update"`` or ``"secure_aggregation"``.
        clip: what is clipped: ``"example"``, ``"update"``, ``"tensor"``, ``"data"`` or ``"none"``.
        target_epsilon: find the noise for this ε.
        target_success: find the noise for at most this chance to name the record in a list of ``candidates``.
        candidates: length of that list.
        target_bits: find the noise for at most so many leaked bits.
        compare_targets: compare what different targets cost in noise.
        norms: gradient norms, or a file with one a line: suggest a clip norm for the noise.
        parameters, batch_size, smoothness, first_loss: for ``norms``: shared parameters, expected batch size, largest
            curvature of the loss (1 and a range if None), mean loss at the start.
        training: train a small public problem with the plan's noise: bound and measurement against ε.
        progress: hears how far the training is.

    Raises:
        DataError: for a file that cannot be read.
        UnknownNameError: for a key that no plan has, with the nearest one.
        UsageError: for a missing key, a value out of range, or a target that no noise reaches.
    """
    from gradleak.privacy.accounting import accountant
    from gradleak.privacy.accounting.budget import readings
    from gradleak.privacy.lint import lint
    from gradleak.privacy.targets.noise_for_targets import compare, noise_for

    overrides = {
        "noise_multiplier": noise_multiplier,
        "sampling_rate": sampling_rate,
        "steps": steps,
        "delta": delta,
        "sampling": sampling,
        "relation": relation,
        "view": view,
        "clip": clip,
    }
    accounted = _plan(plan, saved, {key: value for key, value in overrides.items() if value is not None})
    targets = _targets(target_epsilon, target_success, candidates, target_bits)
    guarantee = accountant.account(accounted)
    prices = tuple(noise_for(accounted, target) for target in targets)
    prices += tuple(compare(accounted)) if compare_targets else ()
    multiplier = prices[0].noise_multiplier if prices else accounted.least_noise
    sizes = {"parameters": parameters, "batch_size": batch_size, "steps": accounted.steps}
    return Account(
        plan=accounted,
        guarantee=guarantee,
        readings=tuple(readings(accounted)),
        success={length: accountant.success(accounted, 1 / length) for length in LISTS},
        lint=lint(accounted, guarantee),
        targets=prices,
        clip=None if norms is None else _clip_choice(norms, multiplier, sizes, smoothness, first_loss),
        training=_training(accounted, progress) if training else None,
    )


def _plan(
    plan: Plan | Mapping[str, Any] | str | Path | None, saved: str | Path | None, overrides: Mapping[str, Any]
) -> Plan:
    from gradleak.core.errors import UsageError
    from gradleak.privacy.plan.file import make_plan, read_plan
    from gradleak.privacy.plan.plan import Plan

    if isinstance(plan, Plan):
        if overrides:
            raise UsageError(
                f"A Plan is complete; {next(iter(overrides))} cannot override it. Use dataclasses.replace."
            )
        return plan
    table = dict(plan or {}) if plan is None or isinstance(plan, Mapping) else read_plan(Path(plan))
    if "noise_multiplier" in overrides:
        table.pop("noise_multipliers", None)
    return make_plan({**table, **overrides})


def _targets(epsilon: float | None, success: float | None, candidates: int, bits: float | None) -> tuple[Target, ...]:
    from gradleak.privacy.targets.targets import BitsAtMost, EpsilonAtMost, SuccessAtMost

    targets: list[Target] = []
    if epsilon is not None:
        targets.append(EpsilonAtMost(epsilon=epsilon))
    if success is not None:
        targets.append(SuccessAtMost(probability=success, candidates=candidates))
    if bits is not None:
        targets.append(BitsAtMost(bits=bits))
    return tuple(targets)


def _price(price: Price) -> dict[str, Any]:
    fields = asdict(price)
    return {"goal": fields.pop("target"), **fields}


def _clip_choice(
    norms: str | Path | Sequence[float],
    multiplier: float,
    sizes: Mapping[str, int],
    smoothness: float | None,
    first_loss: float,
) -> ClipChoice:
    from gradleak.privacy.training_cost.clip_choice import Training, read_norms, suggest

    values = read_norms(Path(norms)) if isinstance(norms, str | Path) else norms
    level = 1.0 if smoothness is None else smoothness
    best, smoother, rougher = (
        suggest(values, multiplier, Training(**sizes, smoothness=factor * level, initial_gap=first_loss))
        for factor in (1.0, 0.01, 100.0)
    )
    return ClipChoice(
        best=best,
        noise_multiplier=multiplier,
        smoothness=level,
        smoothness_given=smoothness is not None,
        first_loss=first_loss,
        clip_norm_range=(smoother.clip_norm, rougher.clip_norm),
    )


def _training(plan: Plan, progress: Callable[[float, str], None]) -> TrainingCost:
    from gradleak.harness.utility.noise_cost import training_cost

    return training_cost(plan, progress=progress)
