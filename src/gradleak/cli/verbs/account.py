"""ε of a training plan with everything it rests on, what it buys, what is wrong with it, and the noise that a goal asks for.
Must not import torch, unless a training is asked for: this verb is arithmetic and answers in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradleak.cli.common.options import Json, Out
from gradleak.cli.common.output import errors_shown, print_json

if TYPE_CHECKING:
    from gradleak.privacy.plan.plan import Plan
    from gradleak.privacy.targets.noise_for_targets import Price
    from gradleak.privacy.targets.targets import Target

LINT_FAILED = 1


def account(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[PLAN]", help="A TOML file; options override its keys.", show_default=False),
    ] = None,
    saved: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="JSON that Opacus, Flower or a Trainer saved; plan and options override it."
        ),
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option("--noise-multiplier", help="Noise on the sum, in units of the clip norm.")
    ] = None,
    sampling_rate: Annotated[
        float | None, typer.Option("--sampling-rate", help="Share of the records (or clients) in a step, such as 0.01.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Number of noisy steps. Default 1.")] = None,
    delta: Annotated[float | None, typer.Option("--delta", help="δ, in (0, 1). Default 1e-5.")] = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            "--sampling", metavar="HOW", help="none, poisson (default with a rate), fixed, shuffle or with_replacement."
        ),
    ] = None,
    relation: Annotated[
        str | None, typer.Option("--relation", metavar="NAME", help="add_or_remove, zero_out or replace_one.")
    ] = None,
    view: Annotated[
        str | None,
        typer.Option("--view", metavar="NAME", help="final_model, server_sees_each_update or secure_aggregation."),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option("--clip", metavar="WHAT", help="example, update, tensor, microbatch, batch, data or none."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other key of a plan, such as clients=50, unit=user or claimed.epsilon=1.8. Repeatable.",
        ),
    ] = None,
    target_epsilon: Annotated[float | None, typer.Option("--target-epsilon", help="Find the noise for this ε.")] = None,
    target_success: Annotated[
        float | None,
        typer.Option("--target-success", help="Find the noise for at most this chance to name the record in a list."),
    ] = None,
    candidates: Annotated[int, typer.Option("--candidates", help="Length of that list.")] = 512,
    target_bits: Annotated[
        float | None, typer.Option("--target-bits", help="Find the noise for at most so many leaked bits.")
    ] = None,
    goals: Annotated[
        bool, typer.Option("--goals", help="Compare what different goals cost in noise; takes longer.")
    ] = False,
    norms: Annotated[
        Path | None,
        typer.Option("--norms", metavar="FILE", help="Gradient norms, one a line: suggest a clip norm for the noise."),
    ] = None,
    parameters: Annotated[int, typer.Option("--parameters", help="Shared parameters, for --norms.")] = 1_000_000,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Expected batch size, for --norms.")] = 64,
    smoothness: Annotated[
        float | None,
        typer.Option("--smoothness", help="Largest curvature L of the loss, for --norms. Without it: 1, and a range."),
    ] = None,
    first_loss: Annotated[
        float,
        typer.Option("--first-loss", help="Mean loss at the start, for --norms; ln(classes) for an untrained head."),
    ] = 1.0,
    training: Annotated[
        bool,
        typer.Option(
            "--training",
            help="Train a small public problem with the plan's noise: bound and measurement against ε. Takes seconds a level.",
        ),
    ] = False,
    out_dir: Out = None,
    as_json: Json = False,
) -> None:
    """Account for a training plan: ε, bounds, lint, and the noise for a goal. Exits with 1 if a lint finds an error."""
    with errors_shown():
        from gradleak.privacy.plan.file import make_plan, read_plan
        from gradleak.privacy.plan.saved_states import read_saved_state

        given = {
            "noise_multiplier": noise_multiplier,
            "sampling_rate": sampling_rate,
            "steps": steps,
            "delta": delta,
            "sampling": sampling,
            "relation": relation,
            "view": view,
            "clip": clip,
        }
        table = ({} if saved is None else read_saved_state(saved)) | ({} if file is None else read_plan(file))
        plan = make_plan(_merged(table, {k: v for k, v in given.items() if v is not None}, settings))
        targets = _targets(target_epsilon, target_success, candidates, target_bits)
        result = _evaluate(plan, targets, goals=goals)
        multiplier = result["goals"][0]["noise_multiplier"] if result["goals"] else plan.least_noise
        if norms is not None:
            training_sizes = {"parameters": parameters, "batch_size": batch_size, "steps": plan.steps}
            result |= {"clip": _clip_norm(norms, multiplier, training_sizes, smoothness, first_loss)}
        result |= _training(plan, result["goals"], out_dir) if training else {}
        if as_json:
            print_json(_finite(result))
        else:
            from gradleak.cli.verbs.account_tables import show

            show(result)
        if any(finding["severity"] == "error" for finding in result["lint"]):
            raise typer.Exit(LINT_FAILED)


def _merged(table: dict[str, Any], given: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    from gradleak.cli.common.options import parse_settings

    merged = {**table, **given}
    if "noise_multiplier" in given:
        merged.pop("noise_multipliers", None)
        if isinstance(merged.get("steps"), list):
            merged["steps"] = sum(merged["steps"])
    for key, value in parse_settings(settings).items():
        if key.startswith("claimed."):
            merged["claimed"] = {**merged.get("claimed", {}), key.removeprefix("claimed."): value}
        elif key == "unnoised":
            merged[key] = [value]
        else:
            merged[key] = "none" if value is None else value
    return merged


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


def _evaluate(plan: Plan, targets: tuple[Target, ...], *, goals: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from gradleak.privacy.accounting.accountant import account, success
    from gradleak.privacy.accounting.budget import readings
    from gradleak.privacy.lint import lint
    from gradleak.privacy.targets.noise_for_targets import compare, noise_for

    guarantee = account(plan)
    return {
        "plan": asdict(plan) | {"steps": plan.steps},
        "guarantee": asdict(guarantee),
        "readings": [asdict(reading) for reading in readings(plan)],
        "success": {str(k): success(plan, 1 / k) for k in (2, 512, 50257)},
        "lint": [asdict(finding) for finding in lint(plan, guarantee)],
        "goals": [_price(noise_for(plan, target)) for target in targets]
        + ([_price(price) for price in compare(plan)] if goals else []),
    }


def _price(price: Price) -> dict[str, Any]:
    from dataclasses import asdict

    fields = asdict(price)
    return {"goal": fields.pop("target"), **fields}


def _clip_norm(
    norms: Path, multiplier: float, sizes: dict[str, int], smoothness: float | None, first_loss: float
) -> dict[str, Any]:
    """The clip norm, and how far it moves if the curvature, which nobody knows well, is another."""
    from dataclasses import asdict

    from gradleak.privacy.training_cost.clip_choice import Training, read_norms, suggest

    values, level = read_norms(norms), 1.0 if smoothness is None else smoothness
    best, smoother, rougher = (
        suggest(values, multiplier, Training(**sizes, smoothness=factor * level, initial_gap=first_loss))
        for factor in (1.0, 0.01, 100.0)
    )
    return asdict(best) | {
        "noise_multiplier": multiplier,
        "total": best.bound.total,
        "smoothness": level,
        "smoothness_given": smoothness is not None,
        "first_loss": first_loss,
        "clip_norm_range": [smoother.clip_norm, rougher.clip_norm],
    }


def _training(plan: Plan, goals: list[dict[str, Any]], folder: Path | None) -> dict[str, Any]:
    """The panel of bound and measurement, and its page if there is a folder. Only here torch is loaded."""
    from gradleak.cli.common.output import err
    from gradleak.harness.utility.noise_cost import training_cost
    from gradleak.report import write_training

    def say(fraction: float, message: str) -> None:
        err().print(f"{100 * fraction:3.0f}% {message}", markup=False, highlight=False)

    cost = training_cost(plan, progress=say).to_plain()
    return {"training": cost} | ({} if folder is None else {"page": str(write_training(folder, cost, goals))})


def _finite(value: Any) -> Any:
    """JSON has no infinity: no guarantee is null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
