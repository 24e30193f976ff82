"""The span attack on every structure of decoder, with padding on either side: one code path, no architecture known by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gradleak.attacks.span import Span
from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.stage import Stage
from gradleak.core.update import Update
from gradleak.defenses.dpsgd import DPSGD
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

LENGTHS = (9, 4, 7)
BOS = 5
STRUCTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "rotation of a part of the head": ("gpt_neox", {}),
    "parallel blocks, interleaved rotation": ("gptj", {}),
    "parallel blocks, one norm": ("phi", {}),
    "one key for all heads": ("falcon", {"multi_query": True}),
    "one key for all heads, learned positions": ("gpt_bigcode", {"multi_query": True}),
    "bias on the scores": ("mpt", {}),
    "positions with an offset": ("opt", {}),
    "fused gate and up": ("phi3", {}),
    "norms on queries and keys": ("qwen3", {}),
    "capped scores and a window": ("gemma2", {"sliding_window": 3}),
    "windows in every layer": ("gemma3_text", {"sliding_window": 3, "num_hidden_layers": 5}),
    "a window shorter than the text": ("mistral", {"sliding_window": 3, "num_hidden_layers": 5}),
    "grouped keys": ("llama", {"num_key_value_heads": 2}),
    "tied head": ("llama", {"tie_word_embeddings": True}),
    "norms behind the layers": ("olmo2", {}),
    "experts": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
}


def subject_of(kind: str, seed: int, loss: str = "classification", **settings: Any) -> Subject:
    """A random model of a random small shape."""
    rng = derive(seed, "shape")
    heads, half = (int(torch.randint(low, high, (), generator=rng)) for low, high in ((1, 3), (8, 13)))
    heads, head_dim = 2**heads, 4 * half
    sizes = {"hidden_size": heads * head_dim, "num_attention_heads": heads, "num_hidden_layers": 2, "vocab_size": 400}
    return load_subject(f"random:{kind}", loss=loss, settings={**sizes, **settings}, seed=seed)


def batch_of(subject: Subject, seed: int, *, side: str = "right", bos: bool = False) -> Batch:
    longest = max(LENGTHS)
    places = torch.arange(longest)
    sizes = torch.tensor(LENGTHS).unsqueeze(1)
    mask = places < sizes if side == "right" else places >= longest - sizes
    ids = torch.randint(6, 400, mask.shape, generator=derive(seed, "batch"))
    if bos:
        ids[torch.arange(len(LENGTHS)), mask.int().argmax(1)] = BOS
    ids = ids.masked_fill(~mask, 0)
    labels = (
        torch.arange(len(LENGTHS)) % 2 if subject.loss.name == "classification" else ids.masked_fill(~mask, IGNORED)
    )
    return Batch(inputs=ids, mask=mask, labels=labels)


def attack(
    subject: Subject,
    batch: Batch,
    seed: int,
    *,
    stages: tuple[Stage, ...] = (),
    only: Sequence[str] | None = None,
    update: Update | None = None,
) -> Reconstruction:
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    stage = next((each for each in stages if isinstance(each, DPSGD)), None)
    made = update or trainer.train(trainer.prepare(batch), derive(seed, "client"), stage=stage)
    made = made if only is None else Update({name: made[name] for name in only})
    facts = {"trainer": trainer, "stages": stages, "batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
    return Span()(
        Observation(update=made, knowledge=Knowledge(facts={"subject": subject, **facts})), rng=derive(seed, "attack")
    )


def as_set(records: Sequence[torch.Tensor]) -> set[tuple[int, ...]]:
    return {tuple(record.tolist()) for record in records}


@pytest.mark.parametrize(("seed", "side", "bos"), [(0, "right", False), (1, "left", False), (2, "right", True)])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_is_read_whole(structure: str, seed: int, side: str, bos: bool) -> None:
    kind, settings = STRUCTURES[structure]
    subject = subject_of(kind, seed, **settings)
    batch = batch_of(subject, seed, side=side, bos=bos)
    found = attack(subject, batch, seed)
    assert as_set(found.records) == as_set(batch.records())
    assert found.status is Status.EXACT


@pytest.mark.parametrize("seed", range(3))
def test_learned_positions_tell_that_records_begin_behind_padding(seed: int) -> None:
    subject = subject_of("gpt2", seed)
    batch = batch_of(subject, seed, side="left")
    found = attack(subject, batch, seed)
    assert as_set(found.records) == as_set(batch.records())
    assert found.status is Status.EXACT
    assert "2 of them begin behind padding or another document" in found.message


def test_clipping_by_example_heeds_padding_in_front() -> None:
    subject = subject_of("gpt2", 0)
    batch = batch_of(subject, 0, side="left")
    found = attack(subject, batch, 0, stages=(DPSGD(noise_multiplier=0.0, max_norm=0.1),))
    assert as_set(found.records) == as_set(batch.records())


@pytest.mark.parametrize("seed", range(3))
def test_padding_in_front_that_carries_loss_shows_even_the_last_token(seed: int) -> None:
    # The first real token is predicted from the padding before it, whose attention, all masked, is even over all tokens.
    subject = subject_of("gpt2", seed, loss="causal-lm")
    batch = batch_of(subject, seed, side="left")
    found = attack(subject, batch, seed)
    assert {tuple(r.tolist()) for r in batch.records() if len(r) < max(LENGTHS)} < as_set(found.records)


@pytest.mark.parametrize("seed", range(3))
def test_tokens_beyond_the_reach_of_the_windows_leave_no_trace(seed: int) -> None:
    # Two layers of three tokens each: the classified token hears of four before it.
    subject = subject_of("mistral", seed, sliding_window=3)
    batch = batch_of(subject, seed)
    found = attack(subject, batch, seed)
    assert found.records[0].tolist() == torch.cat([record[-5:] for record in batch.records()]).unique().tolist()
    assert not found.ordered


@pytest.mark.parametrize("seed", range(3))
def test_queries_alone_never_show_the_first_token(seed: int) -> None:
    subject = subject_of("llama", seed)
    batch = batch_of(subject, seed)
    query, key, _ = (each.weight for each in subject.anatomy.blocks[0].attention_inputs)
    found = attack(subject, batch, seed, only=[query])
    assert found.records[0].tolist() == torch.cat([record[1:] for record in batch.records()]).unique().tolist()
    assert "never show the first token" in found.message and not found.ordered
    with_keys = attack(subject, batch, seed, only=[query, key])
    assert with_keys.records[0].tolist() == torch.cat(batch.records()).unique().tolist()
    assert "never" not in with_keys.message


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_attention_alone_is_enough_and_what_comes_behind_it_is_not(kind: str, seed: int) -> None:
    subject = subject_of(kind, seed)
    batch = batch_of(subject, seed)
    blocks = subject.anatomy.blocks
    attention = [each.weight for block in blocks for each in (*block.attention_inputs, block.attention_output)]
    assert as_set(attack(subject, batch, seed, only=attention).records) == as_set(batch.records())
    for only in (blocks[0].mlp_inputs, blocks[-1].maps()):
        found = attack(subject, batch, seed, only=[each.weight for each in only])
        assert found.status is Status.NOT_APPLICABLE
        assert "no token can be tested by itself" in found.message


@pytest.mark.parametrize("seed", range(3))
def test_what_cannot_be_followed_is_counted_and_nothing_is_claimed_complete(seed: int) -> None:
    # The classified token hears of eight before it in the first attention's inputs, of six in its outputs.
    subject = subject_of("mistral", seed, sliding_window=3, num_hidden_layers=4)
    batch = batch_of(subject, seed)
    found = attack(subject, batch, seed)
    assert found.status is Status.UNDECIDED
    assert found.statistics["missed_directions"] >= 1 and "were not found" in found.message


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_documents_packed_into_one_row_are_told_apart(kind: str, reset: bool, seed: int) -> None:
    # The library keeps documents apart where positions start again. Positions that run on need the mask itself.
    subject = subject_of(kind, seed, loss="causal-lm")
    lengths = (6, 4, 5)
    ids = torch.randint(6, 400, (1, sum(lengths)), generator=derive(seed, "packed"))
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    own = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    alone = (document == document.unsqueeze(1)).tril()[None, None]
    mask = None if reset else torch.zeros(alone.shape).masked_fill(~alone, torch.finfo(torch.float32).min)
    positions = own if reset else torch.arange(sum(lengths)).unsqueeze(0)
    logits = subject.module(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    names = list(subject.trainable())
    made = torch.autograd.grad(loss, [subject.parameters()[name] for name in names], materialize_grads=True)
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    found = attack(subject, batch, seed, update=Update(dict(zip(names, made, strict=True))))
    # A document's last token is asked for the next one's first, so it shows; the row's last is asked for nothing.
    whole = [tuple(each.tolist()) for each in ids[0].split(lengths)]
    assert as_set(found.records) == {*whole[:-1], whole[-1][:-1]}
    assert "several documents" in found.message
