"""Predicted token recall on real modules: the forecast of `predict`, against the token test run on noisy updates of those
modules with every token of the vocabulary at every place as a candidate.

The forecast is about this test. It only brackets the attack ``span``, which reads a subspace and not the test's statistic; a
subspace loses a token before the test does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.loss import CLASSIFICATION
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, read_anatomy
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.noise.token_power import TokenTest, dies_at, strengths
from gradleak.theory.prediction.predict import predict
from gradleak.theory.prediction.stand_in import stand_in_batch
from gradleak.theory.prediction.types import Noise

WIDTH, VOCAB, LENGTH = 48, 500, 8


@dataclass(frozen=True, kw_only=True)
class Module:
    """A real module with one batch: where the forecast looks, and all that can stand there.

    Attributes:
        path, weight: of the map that reads values; gradient: as released, ``[features columns]``.
        norm: of the whole update; candidates: inputs of every token at every place, ``[places vocab features]``.
    """

    subject: Subject
    batch: Batch
    path: str
    weight: str
    gradient: Tensor
    norm: float
    candidates: Tensor


def module_of(kind: str, seed: int) -> Module:
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **({} if kind == "gpt2" else {"intermediate_size": 96}),
    )
    loaded = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    subject = Subject(
        name=kind, module=loaded, anatomy=read_anatomy(loaded), tokenizer=None, loss=CLASSIFICATION, classes=2
    )
    batch = stand_in_batch(subject, batch_size=1, seq_len=LENGTH, seed=seed)
    values = subject.anatomy.blocks[0].attention_inputs[-1]
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, torch.Generator())
    every = torch.arange(VOCAB).unsqueeze(1).expand(-1, LENGTH)
    everything = Batch(inputs=every, mask=torch.ones_like(every, dtype=torch.bool), labels=torch.zeros(VOCAB).long())
    read = flow_through(subject, everything, (values.module,))[values.module].inputs
    gradient = update[values.weight].double()
    flow = flow_through(subject, batch, (values.module,))[values.module]
    made = flow.inputs[0].double().T @ flow.errors[0].double()
    return Module(
        subject=subject,
        batch=batch,
        path=values.module,
        weight=values.weight,
        gradient=gradient
        if gradient.shape == made.shape and torch.dist(gradient, made) < 1e-3 * made.norm()
        else gradient.T,
        norm=math.sqrt(sum(float(t.double().square().sum()) for t in update.values())),
        candidates=read.double().transpose(0, 1),
    )


def outside(x: Tensor, others: Tensor) -> Tensor:
    """Unit vectors of the parts of ``x`` outside the rows of ``others``."""
    basis = torch.linalg.qr(others.T).Q
    return torch.nn.functional.normalize(x - (x @ basis) @ basis.T, dim=-1)


def measure(module: Module, test: TokenTest, std: float, draws: int, rng: torch.Generator) -> tuple[float, float]:
    """Recall of the test that is told the other tokens, and the share of draws with any false alarm."""
    ids = module.batch.inputs[0]
    truth = module.candidates[range(LENGTH), ids]
    rows = torch.stack([outside(truth[i], truth[[j for j in range(LENGTH) if j != i]]) for i in range(LENGTH)])
    wrong = torch.ones(LENGTH, VOCAB, dtype=torch.bool)
    wrong[range(LENGTH), ids] = False
    far = outside(module.candidates[wrong], truth)
    found = alarms = 0.0
    for _ in range(draws):
        noisy = module.gradient + std * torch.randn(module.gradient.shape, generator=rng, dtype=torch.float64)
        found += float(((rows @ noisy).square().sum(1) / std**2 > test.threshold).double().mean())
        alarms += bool(((far @ noisy).square().sum(1) / std**2 > test.threshold).any())
    return found / draws, alarms / draws


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("aim", [0.25, 0.5, 0.75])
def test_predicted_recall_is_measured_recall_on_real_modules(kind: str, aim: float) -> None:
    """Within .04: 2 batches of 8 tokens, 90 draws each; the standard error of 1,440 outcomes is at most .013.

    False alarms stay at the stated .05 per family (180 draws: .05 + 3 standard errors is .10).
    """
    predicted, recall, alarms = [], [], []
    for seed in range(2):
        module = module_of(kind, seed)
        ids = module.batch.inputs[0]
        flow = flow_through(module.subject, module.batch, (module.path,))[module.path]
        columns = module.gradient.shape[1]
        test = TokenTest(columns=columns, candidates=VOCAB * (1 if kind == "llama" else LENGTH))
        z = dies_at(test, strengths(flow.inputs[0], flow.errors[0]), recall=aim) / module.norm
        told = predict(
            module.subject, module.batch, training=LocalTraining(), noise=Noise(value=z), origin="test"
        ).forecasts[-1]
        assert (told.name, told.columns, told.candidates) == (module.weight, columns, test.candidates)
        predicted.append(told.recall)
        seen, false = measure(module, test, z * module.norm, 90, torch.Generator().manual_seed(seed))
        recall.append(seen)
        alarms.append(false)
        assert len(set(ids.tolist())) == LENGTH
    assert 0.1 < sum(predicted) / 2 < 0.9
    assert sum(recall) / 2 == pytest.approx(sum(predicted) / 2, abs=0.04)
    assert sum(alarms) / 2 <= 0.10
