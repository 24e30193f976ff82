"""The law of the error on Hugging Face modules in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import soft_labels
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import Jacobian, flatten, update_jacobian
from gradleak.models import load_subject
from gradleak.theory.error.bounds import exact_bounds

pytestmark = pytest.mark.oracle

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 260}
NULL = 1e-5
KINDS = ["gpt2", "bert", "llama", "gpt_neox"]


@dataclass(frozen=True, kw_only=True)
class Module:
    trainer: ClientTrainer
    inputs: Tensor
    targets: Tensor
    mask: Tensor

    def at(self, x: Tensor) -> Jacobian:
        return update_jacobian(self.trainer, x, self.targets, self.mask)


def module_of(kind: str) -> Module:
    subject = load_subject(f"random:{kind}", loss="classification", settings=TINY)
    subject.module.double()
    with torch.no_grad():
        for name, value in subject.parameters().items():
            if value.ndim == 2 and name != subject.anatomy.token_embedding:
                value.mul_(10.0)
    ids = torch.tensor([[5, 9, 11]])
    return Module(
        trainer=ClientTrainer(subject=subject, training=LocalTraining()),
        inputs=10 * subject.embed(ids).detach(),
        targets=soft_labels(torch.tensor([1]), subject.classes).double(),
        mask=torch.ones_like(ids, dtype=torch.bool),
    )


def pseudo_inverse(jacobian: Jacobian) -> tuple[Tensor, Tensor]:
    """J⁺ on the seen directions, and those directions as rows."""
    u, s, vt = torch.linalg.svd(jacobian.dense(), full_matrices=False)
    keep = s > NULL * s[0]
    return vt[keep].T @ (u[:, keep] / s[keep]).T, vt[keep]


def match(module: Module, first: Tensor, clean: Tensor, perturbation: Tensor, *, steps: int = 2) -> Tensor:
    """How far Gauss–Newton moves from the truth; ``first`` is J⁺ there."""
    moved = module.inputs + (first @ perturbation).view_as(module.inputs)
    for _ in range(steps - 1):
        now = module.at(moved)
        gap = flatten(now.update) - clean - perturbation
        moved = moved - (pseudo_inverse(now)[0] @ gap).view_as(moved)
    return (moved - module.inputs).flatten()


@pytest.mark.parametrize("kind", KINDS)
def test_error_law_on_a_module(kind: str) -> None:
    """Measured over predicted RMSE between 0.8 and 1.3 over 25 draws (standard error about .09), at a predicted error of 1 %."""
    module = module_of(kind)
    at_truth = module.at(module.inputs)
    clean = flatten(at_truth.update)
    first, seen = pseudo_inverse(at_truth)
    sigma = (
        0.01
        * float(module.inputs.std())
        / math.sqrt(exact_bounds(at_truth, sigma=1.0, rank_tolerance=NULL).cramer_rao_seen)
    )
    predicted = exact_bounds(at_truth, sigma=sigma, rank_tolerance=NULL).cramer_rao_seen
    rng = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(25):
        noise = sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=rng)
        errors.append((seen @ match(module, first, clean, noise)).square().mean())
    assert 0.8 <= math.sqrt(float(torch.stack(errors).mean()) / predicted) <= 1.3
