"""The predicted influence on Hugging Face modules in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import soft_labels
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import Jacobian, flatten, update_jacobian
from gradleak.models import load_subject
from gradleak.theory.error.influence import influence

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
@pytest.mark.parametrize("kind_of_change", ["noise", "pruning"])
def test_influence_on_a_module(kind: str, kind_of_change: str) -> None:
    """The influence by conjugate gradients against the optimizer: within 5 %, noise at 0.1 % or the smallest 5 % pruned."""
    module = module_of(kind)
    at_truth = module.at(module.inputs)
    clean = flatten(at_truth.update)
    first, seen = pseudo_inverse(at_truth)
    if kind_of_change == "noise":
        change = torch.randn(clean.shape, dtype=clean.dtype, generator=torch.Generator().manual_seed(1))
        change *= 1e-3 * float(module.inputs.norm()) / float((first @ change).norm())
    else:
        live = clean.ne(0)
        least = clean.abs()[live].quantile(0.05)
        change = torch.where(clean.abs() <= least, -clean, 0.0)
    sizes = [t.numel() for t in at_truth.update.values()]
    named = {
        name: part.view_as(tensor)
        for (name, tensor), part in zip(at_truth.update.items(), change.split(sizes), strict=True)
    }
    told = seen @ influence(at_truth, named, tolerance=1e-10).shift.flatten()
    measured = seen @ match(module, first, clean, change, steps=4)
    assert float(told.norm()) == pytest.approx(float(measured.norm()), rel=0.05)
    assert float(torch.dist(told, measured)) < 0.05 * float(measured.norm())
