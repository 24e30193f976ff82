"""A model becomes a ``Subject`` only after everything that would spoil an audit has been looked for. Must not know
where the model came from.
"""

from __future__ import annotations

import torch
from torch import nn

from gradleak.core.errors import ModelError
from gradleak.core.loss import CAUSAL_LM, CLASSIFICATION, MASKED_LM, Loss
from gradleak.core.update import all_finite
from gradleak.models.anatomy import Anatomy, LinearMap
from gradleak.models.calling import run_module
from gradleak.models.extent import Extent
from gradleak.models.reading.anatomy_reader import read_anatomy
from gradleak.models.running.attention import sample_inputs
from gradleak.models.silence import one_line, quiet
from gradleak.models.subject import Subject
from gradleak.models.tokenizer import Tokenizer


def assemble(
    name: str,
    module: nn.Module,
    loss: Loss | None,
    tokenizer: Tokenizer | None,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
    extent: Extent | None = None,
) -> Subject:
    _check_finite(name, module)
    module.eval()
    with quiet():
        anatomy = read_anatomy(module)
        own = None if anatomy.head is None else _loss_of_head(module, anatomy, anatomy.head)
    if own is None or anatomy.head is None:
        raise ModelError(
            f"{type(module).__name__} has no head, so there is no loss to train it with. Load it with a classification "
            "or language-modeling head."
        )
    if loss is not None and loss != own:
        remark = " (it sees later positions)" if loss == CAUSAL_LM and own == MASKED_LM else ""
        raise ModelError(f"{type(module).__name__} is made for the loss {own.name!r}{remark}, not for {loss.name!r}.")
    if tokenizer is not None:
        _check_tokenizer(anatomy, tokenizer, own)
    subject = Subject(
        name=name,
        module=module,
        anatomy=anatomy,
        tokenizer=tokenizer,
        loss=own,
        classes=anatomy.head.out_features,
        pixel_mean=normalization[0],
        pixel_std=normalization[1],
        extent=extent,
    )
    _check_differentiable(subject)
    if own.labels_records and subject.modality == "text":
        _check_pooling(subject)
    return subject


def _check_finite(name: str, module: nn.Module) -> None:
    for parameter, value in module.named_parameters():
        if not all_finite(value):
            raise ModelError(
                f"The weights of {name!r} hold NaN or infinite values, first in {parameter!r}. No gradient of such a "
                "model means anything; load a checkpoint that is whole."
            )


def _loss_of_head(module: nn.Module, anatomy: Anatomy, head: LinearMap) -> Loss:
    """The loss that the module's logits are for."""
    with torch.no_grad():
        axes = run_module(module, sample_inputs(module)).logits.ndim
    if axes == 2:
        return CLASSIFICATION
    if head.out_features != anatomy.vocab_size:
        raise ModelError(f"The head of {type(module).__name__} labels every token; no supported loss trains it.")
    return CAUSAL_LM if anatomy.kind == "decoder" else MASKED_LM


def _check_tokenizer(anatomy: Anatomy, tokenizer: Tokenizer, loss: Loss) -> None:
    if tokenizer.vocab_size > anatomy.vocab_size:
        raise ModelError(
            f"The tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} ids but the model embeds only "
            f"{anatomy.vocab_size}. Pass the tokenizer that belongs to the model."
        )
    if loss.hides_tokens and tokenizer.mask_id is None:
        raise ModelError(f"The tokenizer {tokenizer.name!r} has no mask token, which the loss {loss.name!r} needs.")


def _check_differentiable(subject: Subject) -> None:
    """Training needs derivatives of the whole model, matching those in its inputs."""
    try:
        with torch.enable_grad():
            inputs = sample_inputs(subject.module).requires_grad_()
            # A copy: some models scale their embeddings in place, which a leaf does not allow.
            copy = inputs.clone()
            logits = subject.logits(pixels=copy) if subject.modality == "image" else subject.logits(embeddings=copy)
            (slope,) = torch.autograd.grad(logits.sum(), inputs)
    except RuntimeError as error:
        raise ModelError(
            f"{type(subject.module).__name__} cannot be differentiated: {one_line(error)} "
            "Such a layer has to be replaced before this model can be audited."
        ) from error
    if not all_finite(slope):
        raise ModelError(
            f"The derivative of {type(subject.module).__name__} in its inputs is not finite on a sample input."
        )


def _check_pooling(subject: Subject) -> None:
    """A record's logits must not depend on the padding behind it."""
    inputs = sample_inputs(subject.module)
    padded = torch.cat([inputs, inputs[:, :1]], dim=1)
    mask = torch.ones(padded.shape[:2], dtype=torch.bool, device=inputs.device)
    mask[:, -1] = False
    with torch.no_grad():
        alone, beside = subject.logits(embeddings=inputs), subject.logits(embeddings=padded, mask=mask)
    tolerance = 1e3 * torch.finfo(alone.dtype).eps * (1 + alone.abs().max())
    if bool((alone - beside).abs().max() > tolerance):
        raise ModelError(
            f"The logits of {type(subject.module).__name__} change when padding follows the text: its pooling does not "
            "heed the attention mask, so batches of different lengths cannot be audited."
        )
