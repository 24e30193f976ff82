"""The one way a subject is called: the same for ids and embeddings, deaf to padding, differentiable twice, and equal to
what the library itself computes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from gradleak.models import Subject, ensure_differentiable, load_subject, probe_double_backward

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}
PIXELS = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16}

DECODERS = (
    *("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "opt", "gpt_neox", "gptj"),
    *("phi", "phi3", "falcon", "mpt", "mixtral", "bloom", "deepseek_v3"),
)
ENCODERS = ("bert", "roberta", "distilbert", "electra", "albert", "mpnet")
VISION = ("vit", "deit")
TEXT = [
    *((name, loss) for name in DECODERS for loss in ("classification", "causal-lm")),
    *((name, loss) for name in ENCODERS for loss in ("classification", "masked-lm")),
]


@cache
def subject_of(model_type: str, loss: str = "classification") -> Subject:
    return load_subject(
        f"random:{model_type}", loss=loss, classes=3, settings=PIXELS if model_type in VISION else SMALL
    )


def batch_of(lengths: tuple[int, ...] = (7, 3)) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 250, (len(lengths), max(lengths)), generator=rng)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, 256), mask


@pytest.mark.parametrize(("model_type", "loss"), TEXT)
def test_ids_and_their_embeddings_give_the_same_logits(model_type: str, loss: str) -> None:
    subject = subject_of(model_type, loss)
    ids, mask = batch_of()
    by_ids = subject.logits(inputs=ids, mask=mask)
    by_embeddings = subject.logits(subject.parameters(), embeddings=subject.embed(ids), mask=mask)
    assert by_ids.shape == ((2, 3) if loss == "classification" else (2, 7, subject.classes))
    torch.testing.assert_close(by_ids, by_embeddings, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_type", "loss"), TEXT)
def test_logits_are_those_of_the_library_for_one_text(model_type: str, loss: str) -> None:
    """The library reads ids, pools by its own rule and keeps its own cache; without padding all must agree."""
    subject = subject_of(model_type, loss)
    ids, mask = batch_of((7,))
    with torch.no_grad():
        reference = subject.module(input_ids=ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(subject.logits(inputs=ids, mask=mask), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_type", "loss"), TEXT)
def test_padding_does_not_change_what_is_real(model_type: str, loss: str) -> None:
    subject = subject_of(model_type, loss)
    ids, mask = batch_of()
    with torch.no_grad():
        together = subject.logits(inputs=ids, mask=mask)
        for row, length in enumerate((7, 3)):
            alone = subject.logits(inputs=ids[row : row + 1, :length])[0]
            beside = together[row] if loss == "classification" else together[row, :length]
            torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", DECODERS)
def test_padding_in_front_is_pooled_as_the_library_pools_it(model_type: str) -> None:
    subject = subject_of(model_type)
    ids, mask = (each.flip(1) for each in batch_of((7, 3)))
    with torch.no_grad():
        reference = subject.module(input_ids=ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(subject.logits(inputs=ids, mask=mask), reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", DECODERS)
def test_a_padding_token_inside_the_text_is_read_as_any_other(model_type: str) -> None:
    """Pooling goes by the mask: a text that ends with the padding id is pooled there."""
    subject = subject_of(model_type)
    assert subject.tokenizer is not None
    ids, mask = batch_of((5,))
    ids[0, -1] = subject.tokenizer.pad_id
    with torch.no_grad():
        shorter = subject.logits(inputs=ids[:, :-1], mask=mask[:, :-1])
        assert (subject.logits(inputs=ids, mask=mask) - shorter).abs().max() > 1e-6


def second_order(model_type: str, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """f(x) = <V, dL/dW (x)> for the first attention map W, with a start x and a direction u."""
    vision = model_type in VISION
    subject = load_subject(f"random:{model_type}", loss="classification", settings=PIXELS if vision else SMALL)
    subject.module.to(dtype)
    rng = torch.Generator().manual_seed(1)
    weight = subject.anatomy.blocks[0].attention_inputs[0].weight
    if vision:
        start = torch.rand(1, *subject.pixel_shape, generator=rng, dtype=dtype)
    else:
        start = subject.embed(batch_of((5,))[0]).detach()
    direction = torch.randn(start.shape, generator=rng, dtype=dtype)
    against = torch.randn(subject.parameters()[weight].shape, generator=rng, dtype=dtype)

    def projected(inputs: Tensor) -> Tensor:
        def loss(value: Tensor) -> Tensor:
            given = {"pixels": inputs} if vision else {"embeddings": inputs}
            return subject.logits({weight: value}, **given).log_softmax(-1)[:, 0].sum()

        return (torch.func.grad(loss)(subject.parameters()[weight]) * against).sum()

    return projected, start, direction


# torch's own forward-mode rules still use its deprecated script compiler.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
# Bloom's activation has no forward derivative.
@pytest.mark.parametrize("model_type", (*(name for name in DECODERS if name != "bloom"), *ENCODERS, *VISION))
def test_double_backward_agrees_with_forward_over_reverse(model_type: str) -> None:
    projected, start, direction = second_order(model_type, torch.float32)
    (reverse,) = torch.autograd.grad(projected(variable := start.clone().requires_grad_()), variable)
    _, forward = torch.func.jvp(projected, (start,), (direction,))
    assert reverse.norm() > 0
    scale = float(reverse.norm() * direction.norm())
    torch.testing.assert_close((reverse * direction).sum(), forward, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("model_type", ("gpt2", "bert", "roberta", "distilbert"))
def test_double_backward_agrees_with_finite_differences(model_type: str) -> None:
    """Central differences in float64, for the architectures that compute in it throughout."""
    projected, start, direction = second_order(model_type, torch.float64)
    step = 1e-5
    numeric = (projected(start + step * direction) - projected(start - step * direction)) / (2 * step)
    (exact,) = torch.autograd.grad(projected(variable := start.clone().requires_grad_()), variable)
    torch.testing.assert_close((exact * direction).sum(), numeric, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "qwen3", "gemma2", "opt", "bert", "roberta", "distilbert"))
def test_vmap_over_records_is_the_loop(model_type: str) -> None:
    subject = subject_of(model_type)
    ids, _ = batch_of((7, 7))
    _, mask = batch_of((7, 3))
    parameters = subject.parameters()

    def loss(inputs: Tensor) -> Tensor:
        return subject.logits(parameters, embeddings=inputs[None], mask=mask[1:]).square().sum()

    embeddings = subject.embed(ids).detach()
    batched = torch.func.vmap(torch.func.grad(loss))(embeddings)
    for row in range(2):
        torch.testing.assert_close(batched[row], torch.func.grad(loss)(embeddings[row]), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gemma", "bert"))
def test_replaced_parameters_are_used_everywhere_they_are_tied(model_type: str) -> None:
    """Doubling a tied table through ``params`` equals doubling it in place; the module itself is untouched."""
    loss = "masked-lm" if model_type == "bert" else "causal-lm"
    subject = load_subject(f"random:{model_type}", loss=loss, settings=SMALL)
    ids, mask = batch_of()
    name = subject.anatomy.token_embedding
    assert name is not None
    table = subject.parameters()[name]
    before = table.detach().clone()
    with torch.no_grad():
        functional = subject.logits({name: 2 * table}, inputs=ids, mask=mask)
        assert torch.equal(table, before)
        table.mul_(2)
        torch.testing.assert_close(functional, subject.logits(inputs=ids, mask=mask))


def test_vision_logits_are_those_of_the_library_after_normalization() -> None:
    plain = subject_of("vit")
    pixels = torch.rand(2, *plain.pixel_shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain.logits(pixels=pixels), plain.module(pixel_values=pixels).logits)
    normalized = Subject(
        **{field: getattr(plain, field) for field in ("name", "module", "anatomy", "tokenizer", "loss", "classes")},
        pixel_mean=(0.5, 0.4, 0.3),
        pixel_std=(0.5, 0.25, 0.2),
    )
    by_hand = torch.stack([(pixels[:, 0] - 0.5) / 0.5, (pixels[:, 1] - 0.4) / 0.25, (pixels[:, 2] - 0.3) / 0.2], dim=1)
    torch.testing.assert_close(normalized.logits(pixels=pixels), plain.module(pixel_values=by_hand).logits)


def test_dropout_follows_the_mode_of_the_module() -> None:
    subject = load_subject("random:bert", settings=SMALL | {"hidden_dropout_prob": 0.5})
    ids, mask = batch_of()
    assert torch.equal(subject.logits(inputs=ids, mask=mask), subject.logits(inputs=ids, mask=mask))
    subject.module.train()
    assert not torch.equal(subject.logits(inputs=ids, mask=mask), subject.logits(inputs=ids, mask=mask))


def test_exactly_one_input_is_wanted() -> None:
    subject = subject_of("gpt2")
    ids, _ = batch_of()
    with pytest.raises(ValueError, match="exactly one"):
        subject.logits()
    with pytest.raises(ValueError, match="exactly one"):
        subject.logits(inputs=ids, embeddings=subject.embed(ids))


def test_the_switch_to_differentiable_attention_is_needed_done_and_said() -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=300, pad_token_id=0)
    module = GPT2ForSequenceClassification._from_config(config, attn_implementation="sdpa").eval()
    names = [name for name, _ in module.named_modules()]
    ids, _ = batch_of((5,))
    before = module(input_ids=ids).logits
    assert not probe_double_backward(module)
    assert "switched from 'sdpa'" in ensure_differentiable(module)
    assert probe_double_backward(module)
    assert "nothing was switched" in ensure_differentiable(module)
    assert [name for name, _ in module.named_modules()] == names
    torch.testing.assert_close(module(input_ids=ids).logits, before, atol=1e-6, rtol=1e-5)
