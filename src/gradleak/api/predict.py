"""Theory before practice: what attacks on a model's update can be expected to recover. Must not import torch before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from gradleak.harness.predict import Foreseen


def predict(
    model: str | Path | nn.Module | None = None,
    *,
    data: str | Path | None = None,
    text_column: str | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    loss: str | None = None,
    share: str | None = None,
    dtype: str | None = None,
    noise_multiplier: float | None = None,
    relative_std: float | None = None,
    lora_rank: int | None = None,
    observation: str | Path | None = None,
    influence: str | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Foreseen:
    """Says which conditions of recovery hold, what is expected and which noise would stop it. Runs no attack.

    Args:
        model: a module, a local folder, a hub id, ``"minilm"``, ``"random:TYPE"`` or ``"bare:attention"``; ``"minilm"`` if None.
        data: file of texts, for the laws of your own records; a stand-in batch of distinct random tokens if None.
        text_column: column of the text in .csv and .jsonl.
        batch_size: records of the batch.
        seq_len: tokens per record.
        loss: ``"classification"``, ``"causal-lm"`` or ``"masked-lm"``; the model's own if None.
        share: how the client trains, such as ``"gradient"`` or ``"delta(steps=1, lr=0.001, optimizer=sgd)"``.
        dtype: number format of the update: ``"float32"``, ``"bf16"`` or ``"fp16"``.
        noise_multiplier: noise in units of the norm of the whole update.
        relative_std: noise in units of each tensor's root mean square; not beside ``noise_multiplier``.
        lora_rank: also say what adapters of this rank would hold.
        observation: a captured update, whose own noise is read too.
        influence: a defense such as ``"prune(fraction=0.9)"``: also predict how far it moves what an attacker recovers.
        seed: of random weights and of the stand-in batch.
        settings: of the configuration of a ``"random:TYPE"`` model.

    Raises:
        UsageError: with cause and remedy, for anything that does not fit.
        NotApplicableError: if no law applies to what is shared.
    """
    from gradleak.harness.predict import PredictRequest, foresee

    return foresee(
        PredictRequest(
            model=model,
            data=None if data is None else Path(data),
            text_column=text_column,
            batch_size=batch_size,
            seq_len=seq_len,
            loss=loss,
            share=share,
            dtype=dtype,
            noise_multiplier=noise_multiplier,
            relative_std=relative_std,
            adapter_rank=lora_rank,
            observation=None if observation is None else Path(observation),
            influence=influence,
            seed=seed,
            settings=settings or {},
        )
    )
