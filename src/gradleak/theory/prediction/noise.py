"""The laws that depend on the noise of the release, read for one batch: where span attacks end, how firmly the gradient fixes
the embeddings, how large the error of a reconstruction has to be, and whether positions can still be told. One gradient is
computed once and handed to all of them. Must not know files or attacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import DTYPES, LocalTraining
from gradleak.models import Subject
from gradleak.theory.error.forecast import ErrorForecast, error_forecast
from gradleak.theory.identifiability.gradient_flow import Flow
from gradleak.theory.identifiability.jacobian_spectrum import DataSpectrum, read_spectrum, whitened_product
from gradleak.theory.identifiability.membership import FirstTest, first_test
from gradleak.theory.identifiability.rank import TokenPositionGraph
from gradleak.theory.identifiability.symmetries import Invariance
from gradleak.theory.noise.forecast import NoiseForecast, forecast
from gradleak.theory.noise.position_forecast import PositionForecast, position_forecast
from gradleak.theory.noise.rounding import rounding_std
from gradleak.theory.prediction.types import Noise


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyRelease:
    """A gradient, the format and the noise it is released with, and the batch it comes from.

    Attributes:
        flows: inputs and error signals of the first attention's maps, by module path.
        graph: of the batch's tokens and positions.
    """

    subject: Subject
    batch: Batch
    gradient: Mapping[str, Tensor]
    flows: Mapping[str, Flow]
    graph: TokenPositionGraph
    training: LocalTraining
    noise: Noise
    seed: int

    def unit(self, name: str) -> float:
        """What a noise of 1 is on an entry of this tensor, in units of the gradient."""
        return self.norm() if self.noise.unit == "noise_multiplier" else _rms(self.gradient[name])

    def norm(self) -> float:
        return math.sqrt(math.fsum(float(t.double().square().sum()) for t in self.gradient.values()))

    def noise_std(self, name: str) -> float:
        """Noise and rounding together, per entry of this tensor."""
        return math.hypot(
            rounding_std(self.training.dtype, _rms(self.gradient[name])), self.noise.value * self.unit(name)
        )

    def merged(self, path: str) -> tuple[Tensor, Tensor]:
        """Distinct inputs of a map of the first attention, and the sum of the error signals of each."""
        flow, pairs = self.flows[path], self.graph.pair_of[self.batch.mask]
        inputs, errors = flow.inputs[self.batch.mask], flow.errors[self.batch.mask]
        distinct = inputs.new_zeros(self.graph.pairs, inputs.shape[1])
        distinct[pairs] = inputs
        return distinct, errors.new_zeros(self.graph.pairs, errors.shape[1]).index_add_(0, pairs, errors)


def forecasts_of(release: NoisyRelease) -> Iterator[NoiseForecast]:
    """Where span attacks end: one forecast per shared map of the first attention, noise in the user's unit."""
    subject, norm = release.subject, release.norm()
    candidates = subject.anatomy.vocab_size * (release.batch.inputs.shape[1] if release.graph.positional else 1)
    for linear_map in subject.anatomy.blocks[0].attention_inputs:
        inputs, errors = release.merged(linear_map.module)
        yield forecast(
            linear_map.weight,
            inputs,
            errors,
            unit=release.unit(linear_map.weight),
            noise=release.noise.value,
            extra_std=rounding_std(release.training.dtype, _rms(release.gradient[linear_map.weight])),
            update_norm=norm,
            candidates=candidates,
        )


def first_test_of(release: NoisyRelease, forecasts: Sequence[NoiseForecast]) -> FirstTest | str:
    """What the attack ``token_span`` is expected to find at the user's noise, for a shared gradient."""
    if release.training.share != "gradient":
        return "it is forecast for a shared gradient; a delta adds the rounding of the weights."
    return first_test(
        release.subject,
        release.batch,
        release.flows,
        noise_std=[release.noise.value * item.unit for item in forecasts],
        dtype=DTYPES[release.training.dtype],
        seed=derive(release.seed, "first test").initial_seed(),
    )


def spectrum_and_error(
    release: NoisyRelease, invariances: Sequence[Invariance]
) -> tuple[DataSpectrum | str, ErrorForecast | str]:
    """How firmly the release fixes the embeddings, and the error that it leaves; sentences where not computed.

    Both are read by products with one whitened Jacobian, in units of rounding and noise.
    """
    if release.training.share == "delta" and release.training.local_steps(release.batch.size) > 1:
        sentence = "the derivative of several local steps has no fast product here; one step or a gradient has."
        return sentence, sentence
    stds = {name: release.noise_std(name) for name in release.gradient}
    problem = whitened_product(release.subject, release.batch, noise_std=stds)
    if isinstance(problem, str):
        return problem, problem
    null = tuple(item.name for item in invariances if item.continuous and item.holds)
    spectrum = read_spectrum(problem, release.subject, null=null, format=release.training.dtype, seed=release.seed)
    if release.noise.value == 0:
        return spectrum, "it is bounded for noise that was added, and none was: name one, such as --relative-std 0.1."
    return spectrum, error_forecast(problem, rng=derive(release.seed, "error"))


def positions_of(release: NoisyRelease) -> PositionForecast | str:
    """Up to how many tokens have one position each, and how many still have it at the user's noise."""
    return position_forecast(
        release.subject,
        release.batch,
        {m.module: release.merged(m.module)[1] for m in release.subject.anatomy.blocks[0].attention_inputs},
        release.graph,
        rows=release.gradient,
        noise_std=release.noise_std if release.noise.value > 0 else None,
    )


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
