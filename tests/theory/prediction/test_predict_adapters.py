"""What ``predict`` says of low-rank adapters, against gradients of adapters that the PEFT library put into a model."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import LocalTraining
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import Subject, load_subject
from gradleak.theory.identifiability.counting import Uniqueness
from gradleak.theory.prediction.predict import predict
from gradleak.theory.prediction.types import Noise

pytestmark = pytest.mark.oracle

TOKENS = 9
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}


@pytest.fixture(scope="module")
def scene() -> tuple[Subject, Batch]:
    subject = load_subject("random:llama", loss="classification", settings={**SIZES, "num_key_value_heads": 4})
    subject.module.double()
    ids = torch.randperm(280, generator=derive(0, "ids"))[:TOKENS].unsqueeze(0) + 10
    return subject, Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.tensor([1]))


def adapter_rows(subject: Subject, batch: Batch, rank: int, *, fresh: bool) -> torch.Tensor:
    """The gradients of A of the three maps that read the first attention's input, ``[3 * rank features]``."""
    config = LoraConfig(r=rank, target_modules=["q_proj", "k_proj", "v_proj"])
    adapted = inject_adapter_in_model(config, deepcopy(subject.module)).double()
    rng = derive(rank, "adapters")
    names = [m.module for m in subject.anatomy.blocks[0].attention_inputs]
    found = {}
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name and not fresh:
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype))
        if "lora_A" in name and any(each in name for each in names):
            found[name] = parameter
    logits = adapted(input_ids=batch.inputs).logits
    torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    assert len(found) == 3
    return torch.cat([p.grad for p in found.values() if p.grad is not None])


def held(rows: torch.Tensor, inputs: torch.Tensor) -> bool:
    """Whether every input lies in the span of the rows."""
    if not bool(rows.any()):
        return False
    _, s, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[s > 1e-10 * s[0]]
    return float(((inputs - inputs @ basis.T @ basis).norm(dim=1) / inputs.norm(dim=1)).max()) < 1e-5


@pytest.mark.parametrize("rank", [2, 3])
def test_predict_says_when_peft_adapters_hold_the_tokens(scene: tuple[Subject, Batch], rank: int) -> None:
    subject, batch = scene
    told = predict(
        subject, batch, training=LocalTraining(), noise=Noise(), origin="test", adapter_rank=rank
    ).conclusions[-1]
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    inputs = linear_inputs(subject, (path,), batch.inputs)[path][0].detach()
    rows = adapter_rows(subject, batch, rank, fresh=False)
    assert held(rows, inputs) == (3 * rank >= TOKENS)
    assert (told.verdict.uniqueness is Uniqueness.UNIQUE) == held(rows, inputs)
    assert not adapter_rows(subject, batch, rank, fresh=True).any()
