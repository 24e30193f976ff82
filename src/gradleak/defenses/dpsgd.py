"""Differentially private gradient descent, the defense whose guarantee holds for every attack and every record. Must not
compute ε: it describes itself, the accountant decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.stage import NormStage, Run
from gradleak.defenses._tensors import finite_and_not_negative, require
from gradleak.mechanics.client.clipping import ClipExample, NoisySum


@dataclass(frozen=True, kw_only=True, slots=True)
class DPSGD(NormStage):
    """Clips every example's own gradient, sums, adds Gaussian noise; in each local step.

        gradient = (Σ_{i in batch} g_i·min(1, C/‖g_i‖) + z·C·N(0, I)) / (q·n)

    over all parameters of an example at once. The batch of a step is drawn from the client's n records: all of them
    (q = 1), each by its own coin (Poisson), or a fixed number of them.

    Args:
        max_norm: C, positive.
        noise_multiplier: z, at least 0.
        sampling_rate: q in (0, 1], the expected share of the client's records in a step.
        batches: "poisson" or "fixed". Fixed batches of round(q·n) records have no Poisson guarantee; the claim says so.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        One record changes the sum by at most C, whatever the model and the data; noise reaches every entry, zero rows
        included. So one step is the Gaussian mechanism with multiplier z, sampled with rate q where the server does not
        see which records take part. n is taken as public: neighbors differ in one record set to zero.
        The divisor is the expected batch size, never the actual one.
        The surrogate clips the same way; whom the coin left out an attacker cannot know, so it expects everybody.
        The generator is not cryptographic and works in floating point; see the limits in ``docs/defenses.md``.

    Source: Abadi et al., arXiv 1607.00133.
    Deviations: the records of a step come from this client's batch alone.
    """

    summary: ClassVar[str] = "DP-SGD: clips each example's gradient and adds Gaussian noise in every local step."

    max_norm: float
    noise_multiplier: float
    sampling_rate: float = 1.0
    batches: Literal["poisson", "fixed"] = "poisson"

    def __post_init__(self) -> None:
        z = self.noise_multiplier
        require(math.isfinite(self.max_norm) and self.max_norm > 0, "dpsgd", "max_norm", self.max_norm, "positive")
        require(finite_and_not_negative(z), "dpsgd", "noise_multiplier", z, "a finite number of at least 0")
        require(0 < self.sampling_rate <= 1, "dpsgd", "sampling_rate", self.sampling_rate, "above 0 and at most 1")
        require(self.batches in ("poisson", "fixed"), "dpsgd", "batches", self.batches, "poisson or fixed")

    def mechanism(self) -> NoisySum:
        """What runs and what is described: one object."""
        return NoisySum(clipping=ClipExample(max_norm=self.max_norm), noise_multiplier=self.noise_multiplier)

    def aggregate(
        self, gradients: Mapping[str, Float[Tensor, "batch ..."]], iteration: int, rng: torch.Generator
    ) -> dict[str, Tensor]:
        records = next(iter(gradients.values())).shape[0]
        chosen = self._draw(records, rng)
        rows = {name: tensor[chosen] for name, tensor in gradients.items()}
        return self.mechanism()(rows, self._expected(records), rng)

    def weights(
        self, square_norms: Float[Tensor, " batch"], iteration: int, rng: torch.Generator
    ) -> Float[Tensor, " batch"] | None:
        factors = self.mechanism().clipping.factors(square_norms)
        if factors is None:
            return None
        taken = torch.zeros_like(factors)
        taken[self._draw(len(factors), rng)] = 1.0
        return factors * taken

    def finish(
        self, total: Mapping[str, Tensor], records: int, iteration: int, rng: torch.Generator
    ) -> dict[str, Tensor]:
        return self.mechanism().finish(total, self.max_norm, self._expected(records), rng)

    def surrogate(self, gradients: Mapping[str, Float[Tensor, "batch ..."]], iteration: int) -> Mapping[str, Tensor]:
        return self.mechanism().without_noise(gradients, next(iter(gradients.values())).shape[0])

    def step_noise_std(self, batch_size: int, iteration: int = 0) -> float:
        return self.noise_multiplier * self.max_norm / self._expected(batch_size)

    def example_bound(self) -> float:
        return self.max_norm

    def describe(self, run: Run) -> Mapping[str, Any]:
        plan = self.mechanism().describe(run.tensors)
        rate = self._share(run.sizes)
        return plan | {
            "steps": run.steps,
            "sampling": "none" if rate == 1.0 else self.batches,
            "sampling_rate": rate,
            "sampled": "records",
            "relation": "zero_out",
        }

    def _share(self, sizes: tuple[int, ...]) -> float:
        """The share of a client's records that a step really uses, the largest over clients; 1 where a fixed batch of a client of
        unknown size may be all of it.
        """
        if self.batches == "poisson" or self.sampling_rate == 1.0:
            return self.sampling_rate
        return max((self._expected(size) / size for size in sizes if size), default=1.0)

    def _draw(self, records: int, rng: torch.Generator) -> Tensor:
        """Places of the records that take part in this step."""
        if self.sampling_rate == 1.0:
            return torch.arange(records)
        if self.batches == "poisson":
            coins = torch.rand(records, generator=rng, device=rng.device, dtype=torch.float64)
            return (coins < self.sampling_rate).nonzero().flatten().cpu()
        size = round(self._expected(records))
        return torch.randperm(records, generator=rng, device=rng.device)[:size].cpu()

    def _expected(self, records: int) -> float:
        expected = self.sampling_rate * records
        # A batch of fixed size holds whole records, at least one.
        return max(1.0, round(expected)) if self.batches == "fixed" else expected
