"""One record under rounding or noise: the two tensors first, then the whole update where that can be replayed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.attacks.patch_exact.reading import PatchCase
from gradleak.core.attack import Clock
from gradleak.core.batch import soft_labels
from gradleak.mechanics.patches.closed_form import PatchSolution
from gradleak.mechanics.patches.map_replay import WholeUpdate, most_likely
from gradleak.mechanics.patches.noisy import Estimate, Noisy, estimate_patches
from gradleak.mechanics.patches.prior import PicturePrior
from gradleak.mechanics.subspace.number_format import WIDEST, significant_bits

_ROUNDS = 10
"""M steps; Δ changes by less than the noise after about as many."""

_GOOD_ENOUGH = 1 / 255
"""Expected error of a pixel below which a replay of the whole update has nothing to add."""

_GOOD_ENOUGH_ROUNDED = 0.03
"""The same for short floating-point formats, whose errors are known entry by entry to the first step and not to the second."""


_EMPTY = 1e-5
"""Tensors smaller than this share of the largest are zero in exact arithmetic, and hold errors alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyAnswer:
    """A picture in [0, 1], the rms error that is expected of a pixel, and whether the whole update was replayed."""

    picture: Float[Tensor, "1 channels height width"]
    deviation: float
    replayed: bool
    spent: bool


def denoised(case: PatchCase, clean: PatchSolution, clock: Clock, *, iterations: int, label: int | None) -> NoisyAnswer:
    """The most likely picture.

    Args:
        clean: the plain solution, whose residual shows errors that nobody announced.
        iterations: of the replay; label: of the record, None if the update does not tell it.
    """
    prior = PicturePrior.for_shape(case.entrance.shape)
    inflation = _inflation(case, clean)
    estimate = _two_tensors(case, prior, inflation)
    start = case.picture(_as_read(case, estimate.patches), rest=prior.mean)
    mine = estimate.deviation
    enough = _GOOD_ENOUGH if significant_bits(case.gradient) >= WIDEST else _GOOD_ENOUGH_ROUNDED
    problem = _whole(case, prior, label, inflation) if mine > enough and not clock.spent() else None
    if problem is None or iterations == 0:
        return NoisyAnswer(picture=start, deviation=mine, replayed=False, spent=clock.spent())

    def watch(iteration: int, value: float) -> bool:
        clock.progress(min(1.0, iteration / iterations), f"objective {value:.4g}")
        return clock.spent()

    with torch.no_grad():
        begin = start.clamp(0.0, 1.0).float()
    picture, _ = most_likely(problem, begin, iterations=iterations, watch=watch)
    return NoisyAnswer(picture=picture.double(), deviation=math.nan, replayed=True, spent=clock.spent())


def _two_tensors(case: PatchCase, prior: PicturePrior, inflation: float) -> Estimate:
    """In units of pixels: dL/dW times the channel's std has the patches' pixels, less the channel's mean, as its factor."""
    gradient = case.noisy(case.entrance.weight)
    columns = Noisy(value=gradient.value.flatten(1), variance=gradient.variance.flatten(1) * inflation)
    bias = case.entrance.bias
    total = case.noisy(bias) if bias is not None and bias in case.update else None
    rows = case.noisy_rows()
    return estimate_patches(
        Noisy(value=rows.value, variance=rows.variance * inflation),
        columns.scaled(case.channel_std()),
        None if total is None else Noisy(value=total.value, variance=total.variance * inflation),
        prior=prior,
        patch=case.entrance.patch,
        mean=prior.mean - case.channel_mean(),
        rounds=_ROUNDS,
    )


def _as_read(case: PatchCase, deviations: Float[Tensor, "patches features"]) -> Tensor:
    return deviations / case.channel_std()


def _inflation(case: PatchCase, clean: PatchSolution) -> float:
    """How much larger the errors are than announced, in variance, by the residual of the plain solution; at least 1."""
    gradient, rows = case.noisy(case.entrance.weight), case.noisy_rows()
    own = gradient.variance.flatten(1).mean(dim=1)
    carried = rows.variance.T @ clean.patches.square().mean(dim=1)
    expected = float((own + carried).sum()) * clean.patches.shape[1]
    observed = (clean.certificate * float(case.gradient.double().norm())) ** 2
    share = 1.0 - len(rows.value) / gradient.value.shape[0]
    return max(1.0, observed / max(expected * share, torch.finfo(torch.float64).tiny)) if share > 0 else 1.0


def _whole(case: PatchCase, prior: PicturePrior, label: int | None, inflation: float) -> WholeUpdate | None:
    """The whole update as one least-squares problem; None where it is not one gradient that can be simulated."""
    trainer, subject = case.trainer, case.subject
    if trainer is None or label is None or subject.extent is not None or not subject.loss.classifies_records:
        return None
    if not trainer.training.single or trainer.training.dropout:
        return None
    norms = {name: float(case.update[name].double().norm()) for name in trainer.names() if name in case.update}
    held = [name for name, norm in norms.items() if norm > _EMPTY * max(norms.values())]
    deviations = {name: math.sqrt(float(case.noisy(name).variance.mean()) * inflation) for name in held}
    problem = WholeUpdate(
        subject=subject.in_full_precision(),
        observed={name: case.update[name].float() for name in held},
        weights={name: 1.0 / deviation for name, deviation in deviations.items()},
        label=soft_labels(torch.tensor([label]), subject.classes),
        prior=prior,
    )
    with torch.enable_grad():
        return problem if problem.simulate(torch.zeros(1, math.prod(prior.shape))) is not None else None
