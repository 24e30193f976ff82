"""Tiny random models of every architecture, batches for them, and the span attack on what they release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from gradleak.attacks.span import Span
from gradleak.core.attack import Reconstruction
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.loss import LOSSES
from gradleak.core.rng import derive
from gradleak.core.stage import Stage
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, read_anatomy

VOCAB = 500
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXTRA: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 128},
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "head_dim": 16},
    "qwen2": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "gemma": {"num_key_value_heads": 2, "head_dim": 16},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt_neox": {},
    "phi": {},
    "bert": {},
    "roberta": {},
    "distilbert": {"hidden_dim": 128},
}
CASES = {1: [8], 2: [10, 7]}


def make_subject(kind: str, *, seed: int = 0, loss: str = "classification") -> Subject:
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(
        kind, **{k: v for k, v in SIZES.items() if _takes(kind, k)}, **EXTRA[kind]
    )
    auto = {
        "classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
    }[loss]
    module = auto.from_config(config, attn_implementation="eager").eval()
    classes = config.num_labels if loss == "classification" else VOCAB
    return Subject(
        name=kind,
        module=module,
        anatomy=read_anatomy(module),
        tokenizer=None,
        loss=LOSSES[loss],
        classes=classes,  # type: ignore[arg-type]
    )


def _takes(kind: str, key: str) -> bool:
    return not (kind == "gpt2" and key == "intermediate_size") and not (
        kind == "distilbert" and key == "intermediate_size"
    )


def make_batch(subject: Subject, lengths: Sequence[int], *, seed: int) -> Batch:
    rng = derive(seed, "batch")
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(3, VOCAB, shape, generator=rng).masked_fill(~mask, 0)
    labels = (
        torch.randint(subject.classes, (len(lengths),), generator=rng)
        if subject.loss.name == "classification"
        else ids.masked_fill(~mask, IGNORED)
    )
    return Batch(inputs=ids, mask=mask, labels=labels)


def attack(
    subject: Subject,
    batch: Batch,
    *,
    training: LocalTraining | None = None,
    stages: tuple[Stage, ...] = (),
    only: Sequence[str] | None = None,
    seed: int = 0,
    without: Sequence[str] = (),
) -> Reconstruction:
    trainer = ClientTrainer(subject=subject, training=training or LocalTraining())
    channel = Channel(trainer=trainer, stages=stages)
    update = channel.observe(batch, derive(seed, "channel"))
    if only is not None:
        update = Update({name: update[name] for name in only})
    facts = {
        "subject": subject,
        "trainer": trainer,
        "stages": channel.stages,
        "batch_size": batch.size,
        "seq_len": batch.inputs.shape[1],
    }
    knowledge = Knowledge(facts={name: fact for name, fact in facts.items() if name not in without})
    return Span()(Observation(update=update, knowledge=knowledge), rng=derive(seed, "attack"))


def as_set(records: Sequence[torch.Tensor]) -> set[tuple[int, ...]]:
    return {tuple(record.tolist()) for record in records}
