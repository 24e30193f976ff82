"""Recovery by matching, "find the batch whose update looks like the observed one", assembled from parts:
objective × prior × labels × optimizer × restarts. Attacks are choices of parts. Must not know any attack by name.

The replay models every stage of the channel that the adversary knows through the stage's own surrogate; that is what
makes a matching attack adaptive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core import attack as core
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.matching.objectives import Target
from gradleak.matching.optimizers import Variables
from gradleak.matching.problem import NOISE_PREFIX, Matching, Problem, pose, targets_of
from gradleak.matching.search_space import nearest_tokens
from gradleak.mechanics.client.outer_products import Simulated

NEEDS = frozenset({"subject", "trainer", "batch_size"})
USES = frozenset({"seq_len", "framing", "stages", "mask", "labels"})


_LABEL_STARTS = 4
"""Most label hypotheses that a search starts from."""


def invert(update: Update, view: View, parts: Matching, rng: torch.Generator, clock: core.Clock) -> core.Reconstruction:
    """Runs a matching attack: screen random starts, optimize the best together, keep the lowest objective."""
    problem = pose(update, view, parts)
    function = objective_function(problem, parts)
    start = _screen(problem, parts, function, rng, clock)
    restarts = start["inputs"].shape[0]
    minimum = parts.optimizer.minimize(function, start, stopping=parts.stopping, clock=clock)
    subject = problem.trainer.subject
    with torch.no_grad():
        inputs = problem.inputs(minimum.variables["inputs"])
        targets = targets_of(
            problem, {name: v.unsqueeze(0) for name, v in minimum.variables.items()}, inputs.unsqueeze(0)
        )
    labels = None
    if subject.loss.labels_records:
        labels = tuple(int(c) for c in targets[0].argmax(-1))
    if subject.modality == "image":
        records = tuple(inputs.clamp(0.0, 1.0))
    else:
        records = nearest_tokens(subject, inputs, problem.mask)
    return core.Reconstruction(
        records=records,
        labels=labels,
        status=minimum.status,
        message=f"Matched {len(problem.observed)} tensors in {minimum.iterations} iterations of {restarts} restarts.",
        objective=minimum.value,
        trace=minimum.trace,
        adapted=problem.adapted(),
        statistics={"iterations": float(minimum.iterations), "tensors": float(len(problem.observed))},
    )


def objective(update: Update, view: View, parts: Matching) -> core.Objective:
    """The function that ``invert`` minimizes, on explicit inputs and labels."""
    problem = pose(update, view, parts)

    def evaluate(candidate: core.Candidate) -> float:
        inputs, targets = candidate.inputs.unsqueeze(0), candidate.labels.unsqueeze(0)
        with torch.no_grad():
            return float(_value(problem, parts, inputs, targets))

    return evaluate


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchingFunction:
    """What the optimizer minimizes: ``{"inputs": u, "labels": logits}`` → one value per restart.

    An optimizer that wants more than values and slopes can look at the simulated update itself.
    """

    problem: Problem
    parts: Matching

    def __call__(self, variables: Mapping[str, Tensor]) -> Tensor:
        inputs, targets = self._candidates(variables)
        return _value(self.problem, self.parts, inputs, targets, self.problem.drawn(variables))

    def simulated(self, variables: Mapping[str, Tensor]) -> Simulated:
        """The updates of the candidates as they would be released, attached to the variables."""
        inputs, targets = self._candidates(variables)
        with torch.enable_grad():
            return self.problem.simulate(inputs, targets, self.problem.drawn(variables))

    def compare(self, simulated: Simulated) -> Tensor:
        """The value of candidates whose updates are ``simulated``, priors left out."""
        return self.parts.objective(simulated, self.problem.observed)

    def weight(self, simulated: Simulated) -> float:
        """The factor of the squared distance in ``Distance()``: 1 / ‖g‖² over the tensors that are simulated."""
        squares = Target.of(self.problem.observed).squares
        return 1.0 / max(sum(squares[name] for name in simulated), torch.finfo(torch.float32).tiny)

    def _candidates(self, variables: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = self.problem.inputs(variables["inputs"])
        return inputs, targets_of(self.problem, variables, inputs)


def objective_function(problem: Problem, parts: Matching) -> MatchingFunction:
    """The function that ``invert`` minimizes, on variables."""
    return MatchingFunction(problem=problem, parts=parts)


def _value(
    problem: Problem,
    parts: Matching,
    inputs: Tensor,
    targets: Tensor,
    noise: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    # Taking the update's derivative needs grad mode even when only the value is asked for.
    with torch.enable_grad():
        simulated = problem.simulate(inputs, targets, noise)
    value = parts.objective(simulated, problem.observed)
    if parts.noise_penalty:
        value = value + parts.noise_penalty * problem.surprise(noise)
    if parts.total_variation and problem.trainer.subject.modality == "image":
        value = value + parts.total_variation * _total_variation(inputs)
    return value


def _total_variation(pixels: Float[Tensor, "restarts batch channels height width"]) -> Float[Tensor, " restarts"]:
    vertical = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean((1, 2, 3, 4))
    return vertical + (pixels[..., 1:] - pixels[..., :-1]).abs().mean((1, 2, 3, 4))


def _screen(
    problem: Problem,
    parts: Matching,
    function: Callable[[Mapping[str, Tensor]], Tensor],
    rng: torch.Generator,
    clock: core.Clock,
) -> Variables:
    """Draws ``screened`` random starts and keeps the ``restarts`` with the lowest objective.

    Where labels are searched there are at least as many restarts as classes (up to four), and each leans to another
    class: a start with the wrong label of a single record rarely finds its way back.
    """
    classes = problem.trainer.subject.classes
    search_labels = problem.targets is None and problem.trainer.subject.loss.labels_records
    restarts = max(parts.restarts, min(classes, _LABEL_STARTS)) if search_labels else parts.restarts

    def draw() -> Variables:
        variables: Variables = {"inputs": torch.randn(restarts, *problem.space.shape, generator=rng)}
        # Noise starts at its mean: that is the best guess before anything is known of the draw.
        unknown = {**problem.noise, **problem.guesses}
        variables |= {NOISE_PREFIX + name: torch.zeros(restarts, *shape) for name, shape in unknown.items()}
        if search_labels:
            logits = 0.5 * torch.randn(restarts, problem.batch_size, classes, generator=rng)
            leaning = torch.arange(restarts) % classes
            variables["labels"] = logits + 2.0 * torch.eye(classes)[leaning].unsqueeze(1)
        return variables

    kept = draw()
    with torch.no_grad():
        values = function(kept)
    for _ in range(restarts, parts.screened, restarts):
        if clock.spent():
            break
        drawn = draw()
        with torch.no_grad():
            new = function(drawn)
        # Slot by slot, so that every leaning keeps its place.
        better = new < values
        values = torch.where(better, new, values)
        for name, start in kept.items():
            kept[name] = torch.where(better.view(-1, *[1] * (start.ndim - 1)), drawn[name], start)
    return kept
