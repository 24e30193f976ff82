"""The spectrum that `predict` reads by products, against the whole Jacobian of small models, made by another route."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import transformers
from torch import Tensor

from gradleak.core.batch import Batch, soft_labels
from gradleak.core.loss import CLASSIFICATION
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import update_jacobian
from gradleak.mechanics.derivatives.quadrature import spectrum
from gradleak.models import Subject, read_anatomy
from gradleak.theory.identifiability.jacobian_spectrum import (
    DataSpectrum,
    Resolution,
    WhitenedProduct,
    read_spectrum,
    whitened_product,
)
from gradleak.theory.identifiability.symmetries import probe_invariances
from gradleak.theory.prediction.stand_in import stand_in_batch

pytestmark = pytest.mark.oracle

WIDTH = 12


def subject_of(kind: str) -> Subject:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=60,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=2,
    )
    module = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    # Norms that do not leave the residual stream small against their ε.
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return Subject(
        name=kind, module=module, anatomy=read_anatomy(module), tokenizer=None, loss=CLASSIFICATION, classes=2
    )


def noise_of(subject: Subject, batch: Batch, relative: float) -> Mapping[str, float]:
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, torch.Generator())
    return {name: relative * max(float(t.square().mean().sqrt()), 1e-30) for name, t in update.items()}


def dense(subject: Subject, batch: Batch, noise: Mapping[str, float]) -> Tensor:
    """Singular values of τ D⁻¹ J, from autograd's own products on dense gradients in float64."""
    subject.module.double()
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    table = subject.anatomy.token_embedding
    x = subject.embed(batch.inputs).detach()
    jacobian = update_jacobian(trainer, x, soft_labels(batch.labels, 2).double(), batch.mask)
    norms = {name: float(t.norm()) for name, t in jacobian.update.items() if name != table}
    kept = [name for name, norm in norms.items() if norm > 1e-5 * max(norms.values())]
    columns = []
    for unit in torch.eye(jacobian.unknowns, dtype=torch.float64).reshape(-1, *jacobian.shape):
        moved = jacobian.forward(unit)
        columns.append(torch.cat([moved[name].flatten() / noise[name] for name in kept]))
    tau = float(subject.parameters()[table].detach().var(0).mean().sqrt())
    subject.module.float()
    return tau * torch.linalg.svdvals(torch.stack(columns, 1))


def read(subject: Subject, batch: Batch, noise: Mapping[str, float]) -> DataSpectrum:
    hidden = probe_invariances(subject, torch.Generator().manual_seed(0))
    null = tuple(each.name for each in hidden if each.continuous and each.holds)
    problem = whitened_product(subject, batch, noise_std=noise)
    assert isinstance(problem, WhitenedProduct)
    return read_spectrum(problem, subject, null=null, format="float32", seed=0)


@pytest.mark.parametrize(("kind", "null"), [("bert", 8), ("gpt_neox", 8), ("llama", 0)])
def test_it_is_the_spectrum_of_the_whole_jacobian(kind: str, null: int) -> None:
    """Two records of four tokens: 96 unknowns. LayerNorm hides one per token, RMSNorm none."""
    subject = subject_of(kind)
    batch = stand_in_batch(subject, batch_size=2, seq_len=4, seed=1)
    noise = noise_of(subject, batch, 1e-6)
    found, values = read(subject, batch, noise), dense(subject, batch, noise)
    assert (found.unknowns, found.null) == (96, null)
    assert found.largest == pytest.approx(float(values[0]), rel=1e-4)
    assert found.resolution is not Resolution.AT_MOST
    seen = int((values > 1).sum())
    assert round(found.rank_low) == round(found.rank_high) == seen
    if null == 0:
        assert found.smallest == pytest.approx(float(values[-1]), rel=1e-3)
    else:
        # What is taken out is what the whole matrix has at its own rounding.
        assert float(values[-null]) < 1e-5 * float(values[0]) < float(values[-null - 1])
        assert found.smallest == pytest.approx(float(values[-null - 1]), rel=1e-3)


def test_noise_takes_directions_away_as_the_whole_jacobian_says() -> None:
    subject = subject_of("llama")
    batch = stand_in_batch(subject, batch_size=1, seq_len=4, seed=2)
    values = dense(subject, batch, noise_of(subject, batch, 1.0))
    for relative in (float(values[5]), float(values[20]), float(values[40])):
        found = read(subject, batch, noise_of(subject, batch, 0.999 * relative))
        assert found.rank_low == found.rank_high == int((values > 0.999 * relative).sum())


@pytest.mark.parametrize("steps", [3, 8, 20, 60])
def test_the_bracket_of_a_count_holds_for_every_probe(steps: int) -> None:
    """Chebyshev–Markov–Stieltjes: no probe, however few steps, leaves the bracket; enough steps close it."""
    rng = torch.Generator().manual_seed(steps)
    values = torch.exp(2 * torch.randn(60, dtype=torch.float64, generator=rng))
    values[:5] = 1e-9
    vectors = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64, generator=rng)).Q
    matrix = vectors @ torch.diag(values) @ vectors.T
    for _ in range(10):
        probe = 2.0 * torch.randint(0, 2, (60,), generator=rng).double() - 1
        found = spectrum(lambda v: matrix @ v, probe, steps=steps)
        for cut in (1e-3, 0.1, 1.0, 5.0):
            exact = float((vectors.T @ probe)[values < cut].square().sum())
            low, high = found.below(cut)
            assert low - 1e-6 <= exact <= high + 1e-6
            if steps == 60:
                assert high - low < 1e-6
        assert float(found.ritz[0]) >= float(values.min()) - 1e-9 and float(found.ritz[-1]) <= float(values.max()) * (
            1 + 1e-9
        )


def test_too_large_a_problem_is_said_and_not_started() -> None:
    subject = subject_of("bert")
    batch = Batch(
        inputs=torch.ones(1, 2**22, dtype=torch.int64),
        mask=torch.ones(1, 2**22, dtype=torch.bool),
        labels=torch.tensor([0]),
    )
    answer = whitened_product(subject, batch, noise_std={})
    assert isinstance(answer, str) and "fewer tokens" in answer
