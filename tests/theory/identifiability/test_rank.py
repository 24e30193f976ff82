"""The rank law and the ambiguity law against the inputs of real first layers, in float64, and every single pair of the
batch's tokens and positions tested for membership.
"""

from __future__ import annotations

import pytest
import torch
import transformers

from gradleak.core.batch import Batch
from gradleak.core.loss import CLASSIFICATION
from gradleak.models import Subject, read_anatomy
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.identifiability.input_kinds import read_input_law
from gradleak.theory.identifiability.rank import TokenPositionGraph, token_position_graph

pytestmark = pytest.mark.oracle

WIDTH, VOCAB = 64, 300


def subject_of(kind: str, *, bias: bool) -> Subject:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(kind, **sizes, pad_token_id=0, max_position_embeddings=40)
    module = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.endswith("bias"):
                value.zero_() if not bias else value.normal_(std=0.3)
    return Subject(
        name=kind, module=module, anatomy=read_anatomy(module), tokenizer=None, loss=CLASSIFICATION, classes=2
    )


def first_inputs(subject: Subject, ids: torch.Tensor) -> torch.Tensor:
    """Inputs of the first attention ``[batch seq width]`` in float64."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(inputs=ids, mask=mask, labels=torch.zeros(len(ids), dtype=torch.int64))
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    return flow_through(subject, batch, (path,), dtype=torch.float64)[path].inputs


def graph_of(ids: torch.Tensor, *, positional: bool = True) -> TokenPositionGraph:
    return token_position_graph(ids, torch.ones_like(ids, dtype=torch.bool), positional=positional)


BATCHES = {
    # Every word once: a star per position, a forest.
    "distinct": [[1, 2, 3, 4], [5, 6, 7, 8]],
    # A repeated word joins positions without a cycle.
    "tree": [[1, 2, 1, 4], [5, 6, 7, 6]],
    # (1,0) (1,1) (2,0) (2,1): the shortest cycle there is, and a whole component.
    "complete cycle": [[1, 2, 3, 4], [2, 1, 5, 4]],
    # (1,0) (1,1) (2,1) (2,2) (3,2) (3,0): one cycle that leaves three pairs open.
    "one cycle": [[1, 1, 2, 4], [3, 2, 3, 5]],
    "many cycles": [[1, 2, 3, 1], [2, 1, 1, 3], [3, 3, 2, 2]],
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
@pytest.mark.parametrize("name", BATCHES)
def test_rank_and_every_ambiguous_pair(name: str, kind: str, bias: bool) -> None:
    subject = subject_of(kind, bias=bias)
    ids = torch.tensor(BATCHES[name])
    graph, law = graph_of(ids), read_input_law(subject, positions=ids.shape[1])
    assert (law.positional, law.normalization, law.bias) == (True, "layer", bias)
    x = first_inputs(subject, ids).flatten(0, 1)
    u, s, _ = torch.linalg.svd(x.T, full_matrices=False)
    rank = int((s > 1e-9 * s[0]).sum())
    assert rank == graph.rank(bias=bias)
    basis = u[:, :rank]
    # Every token of the batch at every position: what the first span test would be asked.
    every = first_inputs(subject, ids.unique().unsqueeze(1).expand(-1, ids.shape[1])).flatten(0, 1)
    residual = (every - (every @ basis) @ basis.T).norm(dim=1) / every.norm(dim=1)
    assert int((residual < 1e-6).sum()) == graph.indistinguishable(bias=bias)
    # Tokens that are not in the batch stay outside.
    others = first_inputs(subject, torch.arange(100, 140).unsqueeze(1).expand(-1, ids.shape[1])).flatten(0, 1)
    away = (others - (others @ basis) @ basis.T).norm(dim=1) / others.norm(dim=1)
    assert float(away.min()) > 1e-2


def test_one_cycle_is_enough_for_the_bias_to_fall_into_the_span() -> None:
    """The note that started this said that one cycle is still safe. It is not: a forest is."""
    tree, cycle = (graph_of(torch.tensor(BATCHES[name])) for name in ("tree", "one cycle"))
    assert tree.indistinguishable(bias=True) == tree.pairs
    assert cycle.indistinguishable(bias=True) > cycle.pairs
    assert cycle.rank(bias=True) == cycle.pairs == cycle.rank(bias=False) + 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("words", [5, 20, 200])
def test_random_batches(seed: int, words: int) -> None:
    subject = subject_of("gpt2", bias=seed % 2 == 1)
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 1 + words, (4, 8), generator=rng)
    s = torch.linalg.svdvals(first_inputs(subject, ids).flatten(0, 1))
    assert int((s > 1e-9 * s[0]).sum()) == graph_of(ids).rank(bias=seed % 2 == 1)


def test_without_added_positions_tokens_count_and_no_position_is_told() -> None:
    subject = subject_of("llama", bias=False)
    ids = torch.tensor([[1, 2, 3, 1], [2, 4, 4, 5]])
    law = read_input_law(subject, positions=4)
    assert (law.positional, law.rotary, law.normalization, law.bias, law.room) == (False, True, "rms", False, WIDTH)
    graph = graph_of(ids, positional=law.positional)
    s = torch.linalg.svdvals(first_inputs(subject, ids).flatten(0, 1))
    assert int((s > 1e-9 * s[0]).sum()) == graph.rank(bias=False) == 5
    assert graph.indistinguishable(bias=False) == 5 * 4


def test_centering_takes_one_dimension_and_a_bias_gives_it_back() -> None:
    for bias in (False, True):
        subject = subject_of("gpt2", bias=bias)
        ids = torch.randperm(VOCAB - 1, generator=torch.Generator().manual_seed(0))[:150].reshape(5, 30) + 1
        s = torch.linalg.svdvals(first_inputs(subject, ids).flatten(0, 1))
        law = read_input_law(subject, positions=30)
        assert int((s > 1e-9 * s[0]).sum()) == law.room == WIDTH - (not bias)
