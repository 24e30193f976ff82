"""Structure predicts which projection's gradient holds which tokens; a float64 gradient of the real module confirms it,
integer by integer, for every architecture × loss cell of the table.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import transformers

from gradleak.core.batch import IGNORED, Batch
from gradleak.core.loss import LOSSES
from gradleak.models import Subject, read_anatomy
from gradleak.theory.identifiability.attention_windows import read_bands
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.identifiability.input_kinds import read_input_law
from gradleak.theory.identifiability.receptive_field import Reach, distinct_contexts, propagate
from gradleak.theory.identifiability.span_table import Cell, span_table
from tests.support.readout import read_by_loss

pytestmark = pytest.mark.oracle

VOCAB, WIDTH, HEADS, SEQ = 600, 128, 4, 10
Loss = Literal["classification", "causal-lm", "masked-lm"]
AUTO = {
    "classification": transformers.AutoModelForSequenceClassification,
    "causal-lm": transformers.AutoModelForCausalLM,
    "masked-lm": transformers.AutoModelForMaskedLM,
}


def subject_of(kind: str, loss: Loss, layers: int, **extra: Any) -> Subject:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "pad_token_id": 0,
        "max_position_embeddings": 64,
    }
    if kind not in {"gpt2", "bloom"}:
        sizes["intermediate_size"] = 2 * WIDTH
    config = transformers.AutoConfig.for_model(kind, **sizes, **extra)
    module = AUTO[loss].from_config(config, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for name, value in module.named_parameters():
            # A fresh model attends almost evenly and has no biases, which would hide what both do.
            if name.endswith("bias"):
                value.normal_(std=0.05)
            elif value.ndim == 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                value.normal_(std=WIDTH**-0.5)
    classes = (config.num_labels or 2) if loss == "classification" else VOCAB
    return Subject(
        name=kind, module=module, anatomy=read_anatomy(module), tokenizer=None, loss=LOSSES[loss], classes=classes
    )


def batch_of(subject: Subject, ids: torch.Tensor, mask: torch.Tensor, hidden: torch.Tensor | None = None) -> Batch:
    if subject.loss.name == "classification":
        labels = torch.arange(ids.shape[0]) % subject.classes
    elif subject.loss.name == "causal-lm":
        labels = ids.masked_fill(~mask, IGNORED)
    else:
        assert hidden is not None
        labels = torch.where(hidden & mask, ids, IGNORED)
    return Batch(inputs=ids, mask=mask, labels=labels)


def predicted(subject: Subject, batch: Batch) -> tuple[Reach, tuple[Cell, ...]]:
    bands = read_bands(subject, positions=batch.inputs.shape[1])
    reach = propagate(read_by_loss(subject, batch), batch.mask, bands=bands)[0]
    law = read_input_law(subject, positions=batch.inputs.shape[1])
    return reach, span_table(reach, subject.anatomy.blocks[0], batch.inputs, batch.mask, law)


def parts(subject: Subject, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Inputs ``[rows width]`` and gradients of the three projections, in float64."""
    block = subject.anatomy.blocks[0]
    flows = flow_through(subject, batch, [m.module for m in block.attention_inputs], dtype=torch.float64)
    errors = [flows[m.module].errors.reshape(batch.inputs.numel(), -1) for m in block.attention_inputs]
    if block.fused and subject.name in {"bloom", "gpt_neox"}:
        # These store queries, keys and values head by head.
        stacked = errors[0].reshape(batch.inputs.numel(), HEADS, 3, -1)
        errors = [stacked[:, :, i].flatten(1) for i in range(3)]
    elif block.fused:
        errors = list(errors[0].split(WIDTH, dim=1))
    x = flows[block.attention_inputs[0].module].inputs.reshape(batch.inputs.numel(), -1)
    names = ("query", "key", "value")
    return x, {n: x.T @ e for n, e in zip(names, errors, strict=True)} | {"query+key+value": x.T @ torch.cat(errors, 1)}


def column_space(gradient: torch.Tensor) -> torch.Tensor:
    u, s, _ = torch.linalg.svd(gradient, full_matrices=False)
    if float(s[0]) == 0:
        return u[:, :0]
    # The drop from signal to rounding is many decades. Some models take their softmax in float32
    # whatever they are given, so what lies below 1e-7 of the largest value counts as rounding.
    rank = int((s > 1e-7 * s[0]).sum())
    return u[:, :rank]


def check(subject: Subject, batch: Batch) -> dict[str, tuple[int, int]]:
    _, cells = predicted(subject, batch)
    x, gradients = parts(subject, batch)
    seen: dict[str, tuple[int, int]] = {}
    for cell in cells:
        basis = column_space(gradients[cell.part])
        assert cell.rank == basis.shape[1], (cell.part, cell.rank, basis.shape[1])
        residual = ((x - (x @ basis) @ basis.T).norm(dim=1) / x.norm(dim=1)).reshape(batch.mask.shape)
        assert torch.equal((residual < 1e-5) & batch.mask, cell.held), cell.part
        seen[cell.part] = (cell.rank, int(cell.held.sum()))
    return seen


def distinct(batch: int, seq: int = SEQ) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return (1 + torch.randperm(VOCAB - 1, generator=rng)[: batch * seq]).reshape(batch, seq)


TABLE: list[tuple[str, Loss, int, tuple[tuple[int, int], ...]]] = [
    # kind, loss, layers, (rank, tokens in the span) of query, key, value for one record of ten distinct tokens
    ("gpt2", "causal-lm", 1, ((8, 8), (8, 0), (9, 9))),
    ("gpt2", "causal-lm", 2, ((8, 8), (8, 0), (9, 9))),
    ("gpt2", "classification", 1, ((1, 1), (4, 0), (4, 0))),
    ("gpt2", "classification", 2, ((9, 9), (9, 0), (10, 10))),
    ("bert", "classification", 1, ((1, 1), (4, 0), (4, 0))),
    ("bert", "classification", 2, ((10, 10), (9, 0), (10, 10))),
    ("bert", "masked-lm", 1, ((10, 10), (9, 0), (10, 10))),
    ("bert", "masked-lm", 2, ((10, 10), (9, 0), (10, 10))),
    ("llama", "causal-lm", 2, ((8, 8), (9, 9), (9, 9))),
    ("llama", "classification", 2, ((9, 9), (10, 10), (10, 10))),
    ("roformer", "masked-lm", 1, ((10, 10), (10, 10), (10, 10))),
    ("bloom", "causal-lm", 2, ((8, 8), (8, 0), (9, 9))),
]


@pytest.mark.parametrize("records", [1, 2])
@pytest.mark.parametrize(("kind", "loss", "layers", "expected"), TABLE)
def test_the_published_cells(
    kind: str, loss: Loss, layers: int, expected: tuple[tuple[int, int], ...], records: int
) -> None:
    """Guarantees 6.1: exact integers, doubled by a second record of other tokens."""
    subject = subject_of(kind, loss, layers)
    ids = distinct(records)
    mask = torch.ones_like(ids, dtype=torch.bool)
    seen = check(subject, batch_of(subject, ids, mask, hidden=mask))
    wanted = [(rank * records, held * records) for rank, held in expected]
    assert [seen[part] for part in ("query", "key", "value")] == wanted


CELLS: list[tuple[str, Loss, int, dict[str, Any]]] = [
    ("gpt2", "causal-lm", 2, {}),
    ("gpt2", "classification", 1, {}),
    ("bert", "classification", 1, {}),
    ("bert", "masked-lm", 1, {}),
    ("roberta", "classification", 2, {}),
    ("opt", "causal-lm", 1, {"ffn_dim": 256, "word_embed_proj_dim": WIDTH}),
    ("llama", "classification", 1, {}),
    ("llama", "causal-lm", 1, {"num_key_value_heads": 2}),
    ("qwen3", "classification", 1, {"num_key_value_heads": 1, "head_dim": 32}),
    ("gpt_neox", "causal-lm", 1, {}),
    ("bloom", "classification", 1, {}),
]


@pytest.mark.parametrize(("kind", "loss", "layers", "extra"), CELLS)
@pytest.mark.parametrize("words", [6, 500])
def test_every_cell_with_padding_repeats_and_hidden_tokens(
    kind: str, loss: Loss, layers: int, extra: dict[str, Any], words: int
) -> None:
    """Records of 7, 10 and 3 tokens of a small or a large vocabulary; masked-LM hides one token of each."""
    subject = subject_of(kind, loss, layers, **extra)
    rng = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 1 + words, (3, SEQ), generator=rng)
    lengths = torch.tensor([7, 10, 3])
    mask = torch.arange(SEQ) < lengths.unsqueeze(1)
    hidden = torch.nn.functional.one_hot(torch.tensor([2, 6, 1]), SEQ).bool()
    check(subject, batch_of(subject, ids.masked_fill(~mask, 0), mask, hidden))


WINDOWS: list[tuple[str, Loss, int, dict[str, Any]]] = [
    ("mistral", "causal-lm", 2, {"sliding_window": 3, "num_key_value_heads": 2}),
    ("mistral", "classification", 1, {"sliding_window": 4, "num_key_value_heads": 2}),
    ("mistral", "classification", 2, {"sliding_window": 4, "num_key_value_heads": 2}),
    ("gemma2", "causal-lm", 2, {"sliding_window": 3, "num_key_value_heads": 2, "head_dim": 32}),
    ("modernbert", "classification", 2, {"local_attention": 6, "global_attn_every_n_layers": 2}),
]


@pytest.mark.parametrize(("kind", "loss", "layers", "extra"), WINDOWS)
@pytest.mark.parametrize("words", [6, 500])
def test_windows_of_local_attention(kind: str, loss: Loss, layers: int, extra: dict[str, Any], words: int) -> None:
    """Windows shorter than the record, in all blocks or in some; no padding: rows that see nothing are NaN in float64."""
    subject = subject_of(kind, loss, layers, **extra)
    ids = torch.randint(1, 1 + words, (2, SEQ), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids, dtype=torch.bool)
    check(subject, batch_of(subject, ids, mask, mask))


def test_windows_are_read_off_the_model() -> None:
    def bands(kind: str, loss: Loss = "causal-lm", **extra: Any) -> list[tuple[int | None, int | None]]:
        return [(b.before, b.after) for b in read_bands(subject_of(kind, loss, 2, **extra), positions=SEQ)]

    everything, causal = [(None, None)] * 2, [(None, 0)] * 2
    assert bands("bert", "classification") == everything
    assert bands("gpt2") == bands("bloom") == bands("mistral", sliding_window=10, num_key_value_heads=2) == causal
    assert bands("mistral", sliding_window=3, num_key_value_heads=2) == [(2, 0), (2, 0)]
    assert bands("gemma2", sliding_window=3, num_key_value_heads=2, head_dim=32) == [(2, 0), (None, 0)]
    local = bands("modernbert", "classification", local_attention=6, global_attn_every_n_layers=2)
    assert local == [(None, None), (3, 3)]


def test_one_block_and_a_window_hold_the_last_tokens_only() -> None:
    """A pooled last token that sees a window of three: four heads hold those three, and nothing before."""
    subject = subject_of("mistral", "classification", 1, sliding_window=3, num_key_value_heads=4)
    ids = distinct(1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    _, cells = predicted(subject, batch_of(subject, ids, mask))
    assert [(c.rank, c.held.nonzero()[:, 1].tolist()) for c in cells] == [
        (1, [9]),
        (3, [7, 8, 9]),
        (3, [7, 8, 9]),
        (3, [7, 8, 9]),
    ]


@pytest.mark.parametrize(
    ("kind", "extra", "wanted"), [("mistral", {"sliding_window": 3, "num_key_value_heads": 2}, 9), ("gpt2", {}, 12)]
)
def test_contexts_of_a_window_are_what_stands_in_it(kind: str, extra: dict[str, Any], wanted: int) -> None:
    """Rank of what the first attention hands on: with rotations and a window of three, equal neighborhoods count once."""
    subject = subject_of(kind, "causal-lm", 2, **extra)
    ids = torch.tensor([[5, 6, 7, 8, 6, 7, 8], [5, 6, 9, 5, 6, 7, 8]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    band = read_bands(subject, positions=7)[0]
    law = read_input_law(subject, positions=7)
    assert distinct_contexts(ids, band.visible(mask), positional=law.positional, within=mask) == wanted
    path = subject.anatomy.blocks[0].attention_output.module
    handed = flow_through(subject, batch_of(subject, ids, mask), (path,), dtype=torch.float64)[path].inputs.flatten(
        0, 1
    )
    s = torch.linalg.svdvals(handed)
    assert int((s > 1e-6 * s[0]).sum()) == wanted
