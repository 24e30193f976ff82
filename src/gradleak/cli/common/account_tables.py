"""The tables of ``gradleak account``. Must not compute anything."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table
from rich.text import Text

from gradleak.cli.common.output import out


def show(result: dict[str, Any]) -> None:
    """Prints everything that ``account`` computed, the verdict first."""
    console = out()
    console.print(_headline(result["guarantee"]), soft_wrap=True)
    console.print(_basis(result["guarantee"]))
    console.print("\nThe same noise, read otherwise", style="bold")
    console.print(_readings(result["readings"], result["plan"]["view"]))
    console.print(_success(result["success"]), soft_wrap=True, highlight=False, markup=False)
    if result["goals"]:
        console.print("\nNoise for a goal", style="bold")
        console.print(_goals(result["goals"]))
    if "clip" in result:
        console.print(_clip(result["clip"]), soft_wrap=True, highlight=False, markup=False)
    if "training" in result:
        _training(result)
    if "audit" in result:
        console.print(_audit(result["audit"]), soft_wrap=True, highlight=False, markup=False)
    console.print("\nLint", style="bold")
    if not result["lint"]:
        compared = "" if result["plan"]["claimed"] else " (no [claimed] table to compare the plan with)"
        console.print("nothing found" + compared, markup=False)
    for finding in result["lint"]:
        line = Text(f"{finding['severity']} ", style="bold red" if finding["severity"] == "error" else "bold yellow")
        line.append(f"{finding['code']}: {finding['message']} ", style="not bold default")
        line.append(finding["remedy"], style="not bold dim")
        console.print(line, soft_wrap=True, highlight=False)


def _audit(audit: dict[str, Any]) -> str:
    verdict = "the claim is refuted" if audit["refuted"] else "nothing here refutes the claim, which proves nothing"
    lines = [f"\nAudit at significance {audit['significance']:g}: {verdict}"]
    if "checks" in audit:
        lines.append(
            f"  noise {audit['noise_ratio']:.4g} of the claimed; the canary moves {audit['sensitivity']:.4g} C; μ ≥ "
            f"{audit['mu_lower']:.4g} of {audit['mu_claimed']:.4g}"
        )
        lines += [f"  {c['name']}: {c['message']} (p ≤ {c['p_value']:.2g})" for c in audit["checks"] if c["failed"]]
    else:
        lines.append(
            f"  ε ≥ {audit['epsilon_lower']:.4g} for any mechanism, {audit['gaussian_epsilon_lower']:.4g} in the Gaussian family"
        )
    return "\n".join(lines)


def _training(result: dict[str, Any]) -> None:
    from gradleak.report.page.training import terminal_table

    cost, console = result["training"], out()
    console.print("\nConvergence against privacy", style="bold")
    console.print(
        f"mean squared gradient norm of {cost['problem']}: {cost['steps']} steps, batches of {cost['batch_size']}; excess loss "
        f"without noise {cost['without_noise']:.3g}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(terminal_table(cost))
    if "page" in result:
        console.print(f"Page: {result['page']}", soft_wrap=True, markup=False)


def _headline(guarantee: dict[str, Any]) -> Text:
    if math.isinf(guarantee["epsilon"]):
        return Text(f"no guarantee: {guarantee['reason']}", style="bold red")
    return Text(f"ε = {guarantee['epsilon']:.4g} at δ = {guarantee['delta']:g}", style="bold")


def _basis(guarantee: dict[str, Any]) -> Table:
    table = _plain("", "")
    for key, text in guarantee["basis"].items():
        table.add_row(key, text)
    if guarantee["method"] != "none":
        table.add_row("computed by", _METHODS.get(guarantee["method"], guarantee["method"]))
    for key, title in _BESIDE.items():
        if guarantee[key] is not None:
            table.add_row(title, f"{guarantee[key]:.4g}")
    for note in guarantee["notes"]:
        table.add_row("note", note)
    return table


_METHODS = {
    "exact": "the exact curve of the Gaussian mechanism",
    "pld": "privacy loss distribution (dp-accounting), rounded upward",
    "pure": "pure ε of Laplace noise, at δ = 0",
    "rdp": "Rényi accounting",
    "known draws": "the mean over the number of participations, draws known to the adversary",
}
_BESIDE = {
    "rdp": "ε by Rényi accounting",
    "lower": "certainly not below",
    "poisson": "ε if the batches were Poisson, which they are not",
}


def _readings(rows: list[dict[str, Any]], view: str) -> Table:
    table = _plain("view", "relation", "releases", "ε", "μ", "detected at 1 false alarm in 1000")
    for row in rows:
        style = "bold" if row["view"] == view else None
        table.add_row(
            row["view"],
            row["relation"],
            str(row["releases"]),
            *(_number(row[key]) for key in ("epsilon", "mu")),
            "no bound" if math.isinf(row["epsilon"]) else f"{row['power']:.2%}",
            style=style,
        )
    return table


def _success(success: dict[str, float]) -> str:
    parts = (f"one of {k}: {value:.3g} (guessing {1 / int(k):.2g})" for k, value in success.items())
    return "\nNo attacker names the record more often than\n  " + "; ".join(parts)


def _goals(rows: list[dict[str, Any]]) -> Table:
    table = _plain("goal", "noise multiplier", "ε then", "noise variance against ε = 8")
    for row in rows:
        table.add_row(
            row["goal"], f"{row['noise_multiplier']:.4g}", _number(row["epsilon"]), _number(row["relative_variance"])
        )
    return table


def _clip(clip: dict[str, Any]) -> str:
    bound, given = clip["bound"], clip["smoothness_given"]
    low, high = sorted(clip["clip_norm_range"])
    assumed = "" if given else ", which is a guess: give --smoothness"
    return (
        f"\nClip norm for noise multiplier {clip['noise_multiplier']:.4g}: C = {clip['clip_norm']:.4g} "
        f"({clip['clipped']:.0%} of the gradients are longer), learning rate {clip['learning_rate']:.3g}.\n"
        f"  bound on the mean squared gradient norm {clip['total']:.4g} = start {bound['start']:.3g} + batches "
        f"{bound['sampling']:.3g} + noise {bound['noise']:.3g} + clipping {bound['bias']:.3g}\n"
        f"  for a first loss of {clip['first_loss']:g} and curvature L = {clip['smoothness']:g}{assumed}; for an L a hundred times "
        f"smaller or larger, C = {low:.4g} or {high:.4g}"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return "no guarantee" if math.isinf(value) else f"{value:.4g}"


def _plain(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, style="cyan" if index == 0 else None, overflow="fold")
    return table
