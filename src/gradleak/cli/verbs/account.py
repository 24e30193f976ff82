"""ε of a training plan with everything it rests on, what it buys, what is wrong with it, and the noise that a goal asks for.
Must not import torch, unless a training is asked for: this verb is arithmetic and answers in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gradleak.cli.common.options import Json, Out
from gradleak.cli.common.output import err, errors_shown, print_json

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
    evidence: Annotated[
        Path | None,
        typer.Option(
            "--audit",
            metavar="FILE",
            help="Hold releases (.safetensors) or guesses about canaries (.json) against the plan; exits with 1 if they refute it.",
        ),
    ] = None,
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
        from gradleak import api
        from gradleak.privacy.plan.file import read_plan
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
        merged = _merged(table, {k: v for k, v in given.items() if v is not None}, settings)
        accounted = api.account(
            merged,
            target_epsilon=target_epsilon,
            target_success=target_success,
            candidates=candidates,
            target_bits=target_bits,
            compare_targets=goals,
            norms=norms,
            parameters=parameters,
            batch_size=batch_size,
            smoothness=smoothness,
            first_loss=first_loss,
            training=training,
            progress=_say,
        )
        result = accounted.to_plain()
        if evidence is not None:
            from gradleak.privacy.auditing.evidence import audit
            from gradleak.privacy.plan.file import make_plan

            result["audit"] = audit(evidence, make_plan(merged), result["guarantee"]["epsilon"])
        if training and out_dir is not None:
            from gradleak.report import write_training

            result["page"] = str(write_training(out_dir, result["training"], result["goals"]))
        if as_json:
            print_json(_finite(result))
        else:
            from gradleak.cli.common.account_tables import show

            show(result)
        refuted = result.get("audit", {}).get("refuted", False)
        if refuted or any(finding["severity"] == "error" for finding in result["lint"]):
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


def _say(fraction: float, message: str) -> None:
    err().print(f"{100 * fraction:3.0f}% {message}", markup=False, highlight=False)


def _finite(value: Any) -> Any:
    """JSON has no infinity: no guarantee is null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
