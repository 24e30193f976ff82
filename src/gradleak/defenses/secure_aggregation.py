"""Under secure aggregation the server sees the sum of many clients' updates and none of them alone. This simulates
what it sees, not the cryptography that hides the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.stage import ProtocolStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import require, working_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class SecureAggregation(ProtocolStage):
    """The server sees one number per parameter: the average over K clients, weighted by their records.

        released = Σ_k n_k·u_k / Σ_k n_k

    The private batch is dealt out to K clients of as equal size as it allows; each trains and defends on its own. All
    records of the batch are private and are to be recovered.

    Args:
        number: K, at least 1.

    Raises:
        SpecError: if ``number`` is below 1; when run, ``DataError`` if there are fewer records than clients.

    Guarantees:
        For the gradient of a classifier's mean loss the release equals, up to rounding, the gradient of the whole batch
        on one client: the sum hides which client holds a record, not the records.
        No differential privacy by itself. A norm bound that each update keeps, the average keeps.

    Source: Bonawitz et al., arXiv 1611.04482, for the protocol whose output this is.
    Deviations: masks, drop-outs and the integers of the real protocol are left out; the sum is exact up to rounding.
    """

    summary: ClassVar[str] = "The server sees only the average over several clients; the cryptography is not simulated."

    number: int

    def __post_init__(self) -> None:
        require(self.number >= 1, "secure_aggregation", "number", self.number, "at least 1")

    def clients(self) -> int:
        return self.number

    def join(self, updates: tuple[Update, ...], sizes: tuple[int, ...], rng: torch.Generator) -> Update:
        total = sum(sizes)

        def average(name: str, tensor: Tensor) -> Tensor:
            dtype = working_dtype(tensor)
            parts = [update[name].to(dtype) * (size / total) for update, size in zip(updates, sizes, strict=True)]
            return torch.stack(parts).sum(0).to(tensor.dtype)

        return updates[0].map(average)

    def surrogate(
        self, simulated: Mapping[str, Float[Tensor, "restarts clients ..."]], sizes: tuple[int, ...]
    ) -> Mapping[str, Float[Tensor, "restarts ..."]]:
        weights = torch.tensor(sizes, dtype=torch.get_default_dtype()) / sum(sizes)
        return {name: torch.einsum("rk...,k->r...", t, weights.to(t)) for name, t in simulated.items()}

    def preserves_norm_bound(self) -> bool:
        return True
