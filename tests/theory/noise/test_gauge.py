"""Which architectures obey which gauge identity, on real blocks, and that honest gradients keep them to rounding."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.models.loading.lora import LoRA, with_lora
from gradleak.theory.noise._gauge import Form, verified_identities
from gradleak.theory.noise.meter import Verdict, measure_noise

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}
PIXELS = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16}
ANY, NONE = "any", "none"


def rotation(rotated: int, pairing: str = "halves") -> str:
    return f"rotation of {rotated}, {pairing} paired"


# type → what is free between queries and keys, equations per key and value head (queries-keys, values-output), head_dim
# 8. "none": a norm on queries and keys.
TABLE = {
    "gpt2": (ANY, 64, 64),
    "gpt_bigcode": (ANY, 64, 64),
    "opt": (ANY, 64, 64),
    "mpt": (ANY, 64, 64),
    "bert": (ANY, 64, 64),
    "roberta": (ANY, 64, 64),
    "electra": (ANY, 64, 64),
    "distilbert": (ANY, 64, 64),
    "vit": (ANY, 64, 64),
    "deit": (ANY, 64, 64),
    "llama": (rotation(8), 8, 64),
    "mistral": (rotation(8), 8, 64),
    "qwen2": (rotation(8), 8, 64),
    "gemma": (rotation(8), 8, 64),
    "gemma2": (rotation(8), 8, 64),
    "phi3": (rotation(8), 8, 64),
    "modernbert": (rotation(8), 8, 64),
    "gptj": (rotation(8, "neighbors"), 8, 64),
    "phi": (rotation(4), 20, 64),
    "gpt_neox": (rotation(2), 38, 64),
    "qwen3": (NONE, 0, 64),
    "gemma3_text": (NONE, 0, 64),
    "olmo2": (NONE, 0, 64),
}


@cache
def subject_of(model_type: str) -> Subject:
    vision = model_type in {"vit", "deit"}
    extra = {"embedding_size": 32} if model_type == "electra" else {}
    if model_type == "olmo2":
        extra = {"pad_token_id": None}
    encoder = model_type in {"bert", "roberta", "electra", "distilbert", "modernbert"}
    loss = "classification" if vision else "masked-lm" if encoder else "causal-lm"
    return load_subject(f"random:{model_type}", loss=loss, settings=PIXELS if vision else SMALL | extra)


def update_of(subject: Subject, seed: int = 5, **training: object) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    if subject.modality == "image":
        inputs, mask = torch.rand(2, *subject.pixel_shape, generator=rng), torch.ones(2, dtype=torch.bool)
    else:
        inputs = torch.randint(1, 250, (2, 9), generator=rng)
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[1, 6:] = False
    labels = torch.tensor([0, 1]) if subject.loss.name == "classification" else inputs.masked_fill(~mask, -100)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(**training))  # type: ignore[arg-type]
    return dict(trainer.update(Batch(inputs=inputs, mask=mask, labels=labels), rng))


@pytest.mark.parametrize("model_type", TABLE)
def test_table_of_identities(model_type: str) -> None:
    """The table of ``docs/theory/noise-meter.md``: found on a probe, and obeyed by another batch with padding."""
    subject = subject_of(model_type)
    identities, rounding = verified_identities(subject)
    assert rounding < 1e-5
    form, between_qk, between_vo = TABLE[model_type]
    for kind, wanted, equations in (("query-key", form, between_qk), ("value-output", ANY, between_vo)):
        found = [each for each in identities if each.kind == kind]
        if wanted == NONE:
            assert not found
            continue
        heads = sum(block.kv_heads for block in subject.anatomy.blocks)
        assert len(found) == heads
        assert {each.form.name for each in found} == {wanted}
        assert {each.equations() for each in found} == {equations}
    reading = measure_noise(update_of(subject), subject)
    assert reading.verdict is Verdict.CLEAN, reading
    assert reading.equations == sum(each.equations() for each in identities)


@pytest.mark.parametrize("form", [Form(name="any"), Form(name="planes", planes=((0, 2), (1, 3)), rotated=4)])
def test_standardized_violations_of_noise_are_independent_unit_normals(form: Form) -> None:
    """Covariance over 4,000 draws against the identity: entries within 5 standard errors, false alarm below 1e-3."""
    rng, draws, dim = torch.Generator().manual_seed(0), 4_000, 6
    left, right = (torch.randn(dim, 9, dtype=torch.float64, generator=rng) for _ in range(2))
    noise = torch.randn(2, draws, dim, 9, dtype=torch.float64, generator=rng)
    gaps = noise[0] @ left.T - right @ noise[1].mT
    z = torch.stack([form.standardize(gap, left @ left.T, right @ right.T) for gap in gaps])
    assert z.shape[1] == form.equations(dim)
    covariance = z.T @ z / len(z)
    assert float((covariance - torch.eye(z.shape[1], dtype=torch.float64)).abs().max()) < 5 * (2 / len(z)) ** 0.5


@pytest.mark.parametrize("b_std", [0.0, 0.02])
def test_adapters_have_an_identity_of_their_own(b_std: float) -> None:
    """G_A Aᵀ = Bᵀ G_B, also before training, where B is zero and G_A with it; nothing else of the model is shared."""
    subject = with_lora(subject_of_fresh("llama"), LoRA(rank=4, targets="query_value", b_std=b_std), seed=0)
    identities, rounding = verified_identities(subject)
    assert {each.kind for each in identities} == {"adapter"} and rounding < 1e-5
    assert len(identities) == 4 and {each.equations() for each in identities} == {16}
    update = update_of(subject)
    assert measure_noise(update, subject).verdict is Verdict.CLEAN
    rng = torch.Generator().manual_seed(1)
    noisy = {name: t + 0.01 * torch.randn(t.shape, generator=rng) for name, t in update.items()}
    reading = measure_noise(noisy, subject)
    # Three standard deviations of the estimate.
    assert abs(reading.std / 0.01 - 1) < 3 / (2 * reading.equations) ** 0.5


def subject_of_fresh(model_type: str) -> Subject:
    """Not the shared one: adapters change the module that they are put on."""
    return load_subject(f"random:{model_type}", loss="causal-lm", settings=SMALL)
