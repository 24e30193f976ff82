"""The three numbers side by side: what an attack recovers, what anyone could, what the mechanism allows. Must not import torch
before it is called.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradleak.api._methods import attacks_text
from gradleak.core.errors import SpecError

if TYPE_CHECKING:
    from gradleak.api._methods import Attacks

NOISE_MULTIPLIERS = ("0.05", "0.1", "0.2", "0.3", "0.5", "1", "2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The chain of one prior over noise levels.

    Attributes:
        path: the folder that holds it.
        chain: the secret, the settings and, per noise level, the bounds, the measured attacks and what they say, as plain data.
    """

    path: Path
    chain: Mapping[str, Any]

    @property
    def violated(self) -> bool:
        """Whether a measured attack did better than a bound allows: an error of the code or of the claim."""
        return any(step["violated"] for step in self.chain["steps"])

    def report(self) -> Path:
        """Writes ``report.html`` into the folder."""
        from gradleak.report import write_bounds

        return write_bounds(self.path)


def bound(
    model: str | None = None,
    *,
    data: str | Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    prior: str = "sentences",
    candidates: int | None = None,
    values: Sequence[str] = (),
    max_norm: float | None = None,
    defense: str | None = None,
    attacks: Attacks | None = None,
    noise_multipliers: Sequence[str | float] = NOISE_MULTIPLIERS,
    releases: int = 1,
    delta: float = 1e-5,
    measured: int = 30,
    max_length: int = 32,
    loss: str | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: Callable[[float, str], None] = lambda fraction, message: None,
) -> Bounds:
    """Compares an attack with what anyone could recover and with what the noise guarantees.

    Args:
        model: a local folder, a hub id, ``"minilm"`` or ``"random:TYPE"``; ``"minilm"`` if None.
        data: file of texts or folder of images; the shipped messages if None.
        text_column, label_column: columns of .csv and .jsonl.
        prior: what the adversary knows beforehand: ``"sentences"`` or ``"images"`` (a list that holds the record),
            ``"token"`` (all but one token), ``"attribute"`` (all but one word of ``values``, or the label).
        candidates: length of the list; up to 512 if None.
        values: words that the attribute is one of.
        max_norm: norm C to which the update is clipped; 1 if None.
        defense: in place of clip and noise of the update, such as ``"dpsgd(max_norm=1.0, noise_multiplier={knob})"``.
        attacks: beside the nearest candidate: a ``gradleak.Attack``, its text, or a sequence of either.
        noise_multipliers: noise levels, in units of C.
        releases: releases of the same record at the same weights.
        delta: at which ε is stated.
        measured: real releases that are attacked at each noise level; 0 for bounds only.
        max_length: tokens per record; longer ones are cut.
        loss: ``"classification"``, ``"causal-lm"`` or ``"masked-lm"``; the model's own if None.
        seed: of every random draw.
        settings: of the configuration of a ``"random:TYPE"`` model.
        out: folder to write or to resume; a temporary one, which stays, if None.
        progress: hears how far the work is.

    Raises:
        UsageError: with cause and remedy.
    """
    levels, template = checked_levels(noise_multipliers), mechanism(defense, max_norm)
    from gradleak.harness.bounds import chain as bounding
    from gradleak.harness.bounds.candidate_lists import Wanted, make_prior
    from gradleak.harness.request import catalogue
    from gradleak.harness.request.prepare import Request, load

    chosen = bounding.Settings(
        defense=template, noise_multipliers=levels, releases=releases, delta=delta, measured=measured, seed=seed
    )
    text = attacks_text(attacks)
    built = tuple(catalogue.make_attacks(text)) if text else ()
    pool, subject = load(
        Request(
            model=model,
            data=None if data is None else Path(data),
            text_column=text_column,
            label_column=label_column,
            loss=loss,
            settings=settings or {},
            seed=seed,
        )
    )
    wanted = Wanted(count=candidates, values=tuple(values), max_length=max_length, seed=seed)
    listed = make_prior(prior, pool, subject, wanted)
    folder = Path(tempfile.mkdtemp(prefix="gradleak-bounds-")) if out is None else Path(out)
    chain = bounding.bound(subject, listed, chosen, folder, attacks=built, progress=progress)
    return Bounds(path=folder, chain=chain)


def mechanism(defense: str | None, max_norm: float | None) -> str:
    """The template of the mechanism. Raises ``SpecError`` for a clip norm that is out of range, or given twice."""
    if defense is None:
        norm = 1.0 if max_norm is None else max_norm
        if not (norm > 0 and math.isfinite(norm)):
            raise SpecError(f"--max-norm {norm} is out of range. It must be positive and finite.")
        return f"clip(max_norm={norm})+gaussian(noise_multiplier={{knob}})"
    if max_norm is not None:
        raise SpecError("--defense says its own clip norm. Leave --max-norm out.")
    return defense


def checked_levels(levels: Sequence[str | float]) -> tuple[str, ...]:
    """Noise levels as text, left as typed. Raises ``SpecError`` unless all are positive, finite and different."""
    texts = tuple(level.strip() if isinstance(level, str) else repr(level).removesuffix(".0") for level in levels)
    typed = ",".join(texts)
    try:
        values = [float(text) for text in texts]
    except ValueError:
        raise SpecError(
            f"Cannot read --noise-multipliers {typed!r}. Write numbers separated by commas, such as 0.1,0.5,1."
        ) from None
    for value in values:
        if not (value > 0 and math.isfinite(value)):
            raise SpecError(
                f"A noise multiplier of {value} is out of range. It must be positive: without noise there is no bound, and "
                "every candidate with a gradient of its own is recovered."
            )
    if len(set(values)) < len(values):
        raise SpecError(f"--noise-multipliers {typed} holds a number twice. Leave one out.")
    return texts
