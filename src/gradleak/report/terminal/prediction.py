"""A prediction as a terminal page: answers first, then the laws that give them. Must not compute anything."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gradleak.harness.influence import InfluenceForecast
from gradleak.harness.predict import Foreseen
from gradleak.theory.identifiability.bare_layer import BarePrediction
from gradleak.theory.identifiability.counting import Uniqueness
from gradleak.theory.identifiability.patches import PatchPrediction
from gradleak.theory.prediction.types import RESIDUAL_IS_NO_PROOF, Prediction

_STYLE = {
    Uniqueness.UNIQUE: "bold red",
    Uniqueness.UP_TO_SYMMETRY: "bold red",
    Uniqueness.CONTINUUM: "yellow",
    Uniqueness.UNDERDETERMINED: "green",
}
_RECORDS = 8
"""Records that are listed one by one."""
_UNITS = {
    "noise_multiplier": ("noise multiplier", "standard deviation in units of the norm of the whole update"),
    "relative_std": ("relative std", "standard deviation in units of each tensor's root mean square"),
}


def page(foreseen: Foreseen) -> RenderableType:
    """Everything, in the order in which it is asked."""
    return Group(*_parts(foreseen))


def _parts(foreseen: Foreseen) -> Iterator[RenderableType]:
    p = foreseen.prediction
    if isinstance(p, BarePrediction):
        yield from _bare(p)
        return
    if isinstance(p, PatchPrediction):
        yield from _patches(p)
        return
    yield _head(p)
    yield _section("What the gradient determines", _conclusions(p), _note(p.warning))
    yield _section("Which tokens the first attention's gradients hold", _table(p), _note(p.ambiguity.sentence))
    yield _section(
        "What no gradient of this model sees", _invariances(p), *(_note(f"· {each}") for each in p.invisible)
    )
    yield _section("How firmly the gradient fixes the embeddings", *_spectrum(p), *_error(p))
    yield _section("Where span attacks end", _noise(p), *_noise_notes(p))
    if foreseen.noise is not None:
        yield _section("What the captured update shows", *_reading(foreseen))
    elif foreseen.remark:
        yield _section("What the captured update shows", _note(f"Not applicable: {foreseen.remark}"))
    if foreseen.influence is not None:
        yield _section("How far the perturbation moves a reconstruction", *_influence(foreseen.influence))


def _patches(p: PatchPrediction) -> Iterator[RenderableType]:
    text = Text(p.model, style="bold")
    text.append(f"  {p.records} × {p.patches} patches, width {p.width}", style="not bold")
    text.append("\nTheory only: no attack was run.", style="not bold dim")
    yield text
    table = _grid("shared", "determined", "#needs width", "#open dimensions", "because")
    for law in p.laws:
        table.add_row(
            law.shared,
            Text("yes" if law.holds else "no", style="bold red" if law.holds else "green"),
            "–" if law.needs is None else str(law.needs),
            str(law.open_dimensions),
            Text(law.reason),
        )
    yield _section("What the first gradients determine of the patches", table)


def _bare(p: BarePrediction) -> Iterator[RenderableType]:
    text = Text(p.model, style="bold")
    text.append(f"  {p.records} × {p.tokens} tokens, width {p.width}, {p.heads} heads, squared loss", style="not bold")
    text.append("\nTheory only: no attack was run.", style="not bold dim")
    yield text
    table = _grid("targets", "#unknowns", "#equations", "#rank", "#seen", "#largest", "#smallest", "verdict", "because")
    for case in p.cases:
        verdict = case.verdict
        numbers = (case.unknowns, case.equations, case.rank, case.seen)
        table.add_row(
            "public" if case.targets_known else "private",
            *(str(number) for number in numbers),
            _number(case.largest),
            _number(case.smallest),
            Text(verdict.uniqueness.value, style=_STYLE[verdict.uniqueness]),
            Text(verdict.reason),
        )
    yield _section(
        "What the gradient determines",
        table,
        _note(
            "seen: rank of the Jacobian at one draw of normal data in float64, with its largest and smallest singular value. "
            f"{RESIDUAL_IS_NO_PROOF}"
        ),
        _note(f"{p.staged}."),
    )


def _section(title: str, *parts: RenderableType) -> RenderableType:
    return Group(Text(f"\n{title}", style="bold"), *(Padding(part, (0, 0, 0, 2)) for part in parts))


def _note(text: str) -> Text:
    return Text(text, style="dim")


def _head(p: Prediction) -> RenderableType:
    law = p.input_law
    positions = "added to the input" if law.positional else "rotations" if law.rotary else "not in the input"
    norm = {"layer": "LayerNorm", "rms": "RMSNorm", "none": "no normalization"}[law.normalization]
    text = Text(f"{p.model}", style="bold")
    text.append(f"  {p.kind}, {p.loss}, {p.equations.layers} layers, width {law.width}", style="not bold")
    text.append(
        f"\nfirst layer: positions {positions}; {norm} {'with' if law.bias else 'without'} bias", style="not bold dim"
    )
    text.append(f"\n{_windows(p)}", style="not bold dim")
    text.append(f"\nbatch: {p.batch_size} × {p.seq_len}, {p.tokens} tokens; {p.batch}", style="not bold dim")
    text.append("\nTheory only: no attack was run.", style="not bold dim")
    return text


def _windows(p: Prediction) -> str:
    """Who attends to whom, block by block where blocks differ."""
    kinds: dict[str, list[int]] = {}
    for number, band in enumerate(p.bands):
        before = "all" if band.before is None else f"{band.before}"
        after = "all" if band.after is None else "none" if band.after == 0 else f"{band.after}"
        kinds.setdefault(f"{before} before, {after} after", []).append(number)
    if len(kinds) == 1:
        return f"attention in every block: {next(iter(kinds))}"
    return "attention: " + "; ".join(f"{kind} in blocks {', '.join(map(str, at))}" for kind, at in kinds.items())


def _grid(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name.startswith("#") else "left")
        table.columns[-1].header = name.lstrip("#")
    return table


def _conclusions(p: Prediction) -> Table:
    table = _grid("question", "verdict", "because")
    for each in p.conclusions:
        verdict = each.verdict
        table.add_row(
            each.question, Text(verdict.uniqueness.value, style=_STYLE[verdict.uniqueness]), Text(verdict.reason)
        )
    return table


def _table(p: Prediction) -> Table:
    table = _grid("gradient", "#rank", "#seen", "#room", "#tokens in span", "which", "why not all")
    for row in p.table:
        table.add_row(
            row.part,
            str(row.rank),
            "–" if row.seen is None else str(row.seen),
            str(row.room),
            f"{row.held} of {row.of}",
            row.places,
            Text(row.reason, style="dim"),
        )
    return table


def _invariances(p: Prediction) -> Table:
    table = _grid("change of the data", "moves the gradient by", "")
    for each in p.invariances:
        answer = Text("invisible", style="bold") if each.holds else Text("seen", style="dim")
        table.add_row(each.name, f"{each.ratio:.0e} of a random change", answer)
    return table


def _spectrum(p: Prediction) -> Iterator[RenderableType]:
    s = p.spectrum
    if isinstance(s, str):
        yield _note(f"Not computed: {s}")
        return
    table = _grid("singular values of the update's derivative, in units of its own noise", "")
    table.add_row("largest", _number(s.largest))
    table.add_row("smallest, null directions taken out", f"{_number(s.smallest)}  ({s.resolution.value})")
    seen = f"{s.rank_low:,.0f}" if s.rank_high - s.rank_low < 1 else f"{s.rank_low:,.0f} to {s.rank_high:,.0f}"
    sure = f" ± {s.rank_error:,.0f}" if s.rank_error >= 1 else ""
    table.add_row(
        f"numerical rank: how many are above {_number(s.cut)}",
        f"{seen}{sure} of {s.unknowns - s.null:,} (of {s.unknowns:,} unknowns {s.null:,} are null directions)",
    )
    yield table
    records = "the whole batch" if s.records == p.batch_size else "the first record, the others known"
    yield _note(
        f"For {records}; {s.steps} products in {s.dtype}, whose rounding shows below {_number(s.floor)}. The unit is the update's "
        f"noise ({s.format} rounding and {p.noise.unit.replace('_', ' ')} {p.noise.value:g}) per standard deviation of an "
        "embedding. Well below 1 a direction of the data is known no better than before the release, however long an attack "
        "runs; well above 1 the error along it is the inverse, to first order. "
        "Labels count as known, the token table's own gradient is left out. More products narrow the range of the rank."
    )


def _error(p: Prediction) -> Iterator[RenderableType]:
    e = p.error
    if isinstance(e, str):
        yield _note(f"Error of a reconstruction: not bounded here: {e}")
        return
    sure = f" (± {_number(e.standard_error)} over {e.probes} probes)" if e.standard_error > 0 else ""
    yield Text(
        f"An attacker with a Gaussian prior around the truth is left with a root mean squared error of {_number(e.low)} to "
        f"{_number(e.high)}{sure} standard deviations of an embedding, to first order; no unbiased attacker goes below "
        f"{_number(e.unbiased)}."
    )
    yield _note(
        "1 is what the prior alone reaches. The first number is exact for a linear release and a Gaussian prior; it is no bound on an "
        "attacker who knows that embeddings are rows of a table."
    )


def _positions(p: Prediction) -> Iterator[RenderableType]:
    forecast = p.positions
    if isinstance(forecast, str):
        yield _note(f"Positions: {forecast}")
        return
    if forecast.most_tokens is not None:
        yield Text(
            f"The gradients of the token and position tables alone give each token one position up to {forecast.most_tokens} distinct "
            f"tokens over {forecast.positions} positions, without noise."
        )
    if forecast.preferred is not None:
        yield Text(
            f"{forecast.preferred:.0%} of the {forecast.pairs} pairs of token and position are expected to explain the noisy gradient "
            "better than every alternative, all other pairs given."
        )
    else:
        yield _note(f"Whether positions survive noise: not computed: {forecast.reason}.")


def _noise(p: Prediction) -> Table:
    table = _grid(
        "gradient",
        "#energy",
        "#directions",
        "#visible",
        "#recall",
        "#span: half",
        "#span: none",
        "#tokens: 50%",
        "#tokens: 5%",
    )
    for each in p.forecasts:
        table.add_row(
            ".".join(each.name.removesuffix(".weight").split(".")[-2:]),
            _number(each.share),
            str(each.rank),
            str(each.visible),
            f"{each.recall:.0%}",
            *(_number(value) for value in (each.span_half, each.span_all, each.token_half, each.token_few)),
        )
    return table


def _noise_notes(p: Prediction) -> Iterator[RenderableType]:
    name, meaning = _UNITS[p.noise.unit]
    yield _first_test(p, f"{name} {p.noise.value:g}")
    yield from _positions(p)
    yield _note(
        f"visible, recall: directions above the noise and expected recall of the token test at {name} {p.noise.value:g} and {p.dtype} "
        f"rounding. The last four columns: the {name} at which half, then none, of the directions stand out, and at which the "
        f"token test is expected to find 50% and 5% of the tokens ({meaning})."
    )
    yield _note(
        f"Smallest residual that a wrong candidate is expected to show: {_number(p.null_residual)}. "
        "The token test is told all other tokens: no attack, but the most powerful test of one token. Conditions: "
        + "; ".join(p.conditions)
        + "."
    )
    yield _note(
        "A span attack that fails is not safety: an attacker who compares whole candidate sentences survives more noise."
    )


def _first_test(p: Prediction, level: str) -> Text:
    first = p.first_test
    if isinstance(first, str):
        return _note(f"Recall of the attack token_span: not computed: {first}")
    sure = f" ± {first.recall_error:.0%}" if first.draws > 1 else ""
    return Text(
        f"The attack token_span is expected to find {first.recall:.0%}{sure} of the distinct tokens at {level}, and {first.false:.1f} "
        f"that are not there; span starts from them, may lose some in putting them in order, and may find others by testing all together."
    )


def _reading(foreseen: Foreseen) -> Iterator[RenderableType]:
    reading = foreseen.noise
    assert reading is not None
    yield Text(reading.verdict.value)
    yield _note(
        f"noise per entry {reading.std:.3g} [{reading.low:.3g}–{reading.high:.3g}] at {reading.confidence:.0%}, "
        f"{reading.relative:.2e} of the entries' rms (a clean update: below {reading.floor:.1e}); "
        f"{reading.equations} identities, {reading.bits} significant bits, {reading.zeros:.1%} zeros."
    )


def _influence(forecast: InfluenceForecast) -> Iterator[RenderableType]:
    yield Text(
        f"{forecast.perturbation} changes the update by {forecast.relative:.2g} of its norm and moves what an attacker recovers by "
        f"{_number(forecast.moved)} standard deviations of an embedding per feature with a Gaussian prior around the truth, and by at "
        f"least {_number(forecast.at_least)} without one (published bound: {_number(forecast.published)})."
    )
    records = ", ".join(_number(value) for value in forecast.per_record[:_RECORDS])
    more = ", …" if len(forecast.per_record) > _RECORDS else ""
    yield _note(
        f"By record: {records}{more}. First order, for an attacker who takes the released update at face value and knows the labels; "
        f"the token table's own gradient is left out. {forecast.steps} steps of conjugate gradients leave {forecast.residual:.0e} of the "
        "equations; a solve that ends early gives too short a movement. A small movement means little protection; a large one is no "
        "guarantee, because first order ends where the movement is not small."
    )


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"
