"""MixUp and InstaHide draw whom they mix, and by how much, from one law. Must not know either."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.errors import DataError, ModelError
from gradleak.core.stage import Client
from gradleak.defenses._tensors import require

_OWN = 3
_TRIES = 10_000


def check_mixing(name: str, mix: int, largest: float) -> None:
    """Raises ``SpecError`` unless a mixture of ``mix`` records can have no weight above ``largest``."""
    require(mix >= 2, name, "mix", mix, "at least 2")
    require(1.05 / mix <= largest <= 1.0, name, "largest", largest, f"from {1.05 / mix:.4g} (a little over 1/mix) to 1")


def mixing_weights(size: int, mix: int, largest: float, rng: torch.Generator) -> Float[Tensor, "batch batch"]:
    """Row j: how much of every record is in mixture j.

    The weights λ of a mixture are Dirichlet(3, 1, ..., 1), drawn again until none exceeds ``largest``; the first is the
    record's own, the others go to different other records of the batch, drawn at random.
    """
    rows = torch.zeros(size, size, dtype=torch.float64, device=rng.device)
    for row in range(size):
        others = torch.randperm(size - 1, generator=rng, device=rng.device)[: mix - 1]
        others = others + (others >= row)
        rows[row, torch.cat([others.new_tensor([row]), others])] = _weights(mix, largest, rng)
    return rows


def guessed_weights(draw: Float[Tensor, "restarts batch batch"], mix: int) -> Float[Tensor, "restarts batch batch"]:
    """Mixing weights of any real numbers: rows on the simplex, the mean law where they are zero."""
    size = draw.shape[-1]
    own = _OWN / (_OWN + mix - 1)
    mean = torch.full((size, size), (1.0 - own) / max(size - 1, 1))
    mean.fill_diagonal_(own)
    return torch.softmax(draw + mean.to(draw).log(), -1)


def averages(weights: Float[Tensor, "restarts batch batch"], values: Tensor) -> Tensor:
    """Σ_i weights_ji values_i for every restart."""
    return torch.einsum("rji,ri...->rj...", weights, values)


def mixed(client: Client, mix: int, largest: float, rng: torch.Generator, *, name: str) -> TrainingData:
    """The client's records and targets, each mixed with others of the batch.

    Raises:
        ModelError: for a text model, whose tokens cannot be averaged.
        DataError: if the batch holds fewer than ``mix`` records.
    """
    data, subject = client.data, client.trainer.subject
    if subject.modality != "image" or not subject.loss.classifies_records:
        raise ModelError(f"{name} averages images and their labels; {subject.name} does not classify images.")
    if data.size < mix:
        raise DataError(
            f"{name} mixes {mix} records of a batch, and the batch holds {data.size}. Raise --batch-size or lower mix."
        )
    weights = mixing_weights(data.size, mix, largest, rng)
    return TrainingData(
        inputs=_averages(weights, data.inputs), targets=_averages(weights, data.targets), mask=data.mask
    )


def _averages(weights: Tensor, values: Tensor) -> Tensor:
    return torch.tensordot(weights.to(values), values, dims=1)


def _weights(mix: int, largest: float, rng: torch.Generator) -> Tensor:
    """One draw of λ: Gamma(3) is a sum of three exponentials, and independent Gammas over their sum are Dirichlet."""
    for _ in range(_TRIES):
        uniform = torch.rand(_OWN + mix - 1, generator=rng, device=rng.device, dtype=torch.float64)
        exponentials = -torch.log1p(-uniform)
        sizes = torch.cat([exponentials[:_OWN].sum(0, keepdim=True), exponentials[_OWN:]])
        weights = sizes / sizes.sum()
        if float(weights.max()) <= largest:
            return weights
    raise DataError(f"No mixture of {mix} records without a weight above {largest} in {_TRIES} draws. Raise largest.")
