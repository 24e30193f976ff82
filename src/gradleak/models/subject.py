"""The model under audit as one object: weights, anatomy, tokenizer and the loss it is trained with, called in one
way whether by the client (ids) or by an attacker (embeddings). Must not know attacks, defenses or how it was loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from gradleak.core.batch import Modality
from gradleak.core.errors import ModelError
from gradleak.core.loss import Loss
from gradleak.models.anatomy import Anatomy
from gradleak.models.calling import backbone, image_shape, reads_pixels, run_module, token_embedding
from gradleak.models.extent import Extent
from gradleak.models.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under audit.

    Attributes:
        name: as it was asked for.
        module: in eval mode, with an attention that is differentiable twice.
        anatomy: what it is made of.
        tokenizer: None for vision.
        loss: what it is trained with.
        classes: number of logits per record or, for language models, per token.
        extent: how much of the model was loaded; None if all of it.
        pixel_mean, pixel_std: per channel; pixels in [0, 1] are normalized with them before the model reads them.
        frozen: parameters that are not trained, beside those that do not require a gradient.
    """

    name: str
    module: nn.Module
    anatomy: Anatomy
    tokenizer: Tokenizer | None
    loss: Loss
    classes: int
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    extent: Extent | None = None
    frozen: frozenset[str] = frozenset()

    @property
    def loaded(self) -> str:
        """One sentence that says how much of the model is here."""
        return "Loaded the whole model." if self.extent is None else self.extent.sentence()

    @property
    def modality(self) -> Modality:
        return "image" if self.anatomy.kind == "vision" else "text"

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images it takes. Raises ``ModelError`` for a text model."""
        if self.modality != "image":
            raise ModelError(f"{self.name} reads text and takes no images.")
        return image_shape(self.module)

    def in_full_precision(self) -> Subject:
        """Itself, or with a copy of the module in which short number formats are float32."""
        if all(torch.finfo(each.dtype).bits >= 32 for each in self.parameters().values()):
            return self
        return replace(self, module=copy.deepcopy(self.module).float())

    def parameters(self) -> dict[str, Tensor]:
        """Every parameter by name: the live tensors, not copies."""
        return dict(self.module.named_parameters())

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that local training changes, by name."""
        parameters = self.module.named_parameters()
        return {name: value for name, value in parameters if value.requires_grad and name not in self.frozen}

    def embed(
        self, ids: Int64[Tensor, "batch seq"], params: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, "batch seq model"]:
        """What ``logits`` takes as ``embeddings`` for these ids; scaled where the model scales."""
        return _call(self, params, _Embedding(self.module), (ids,))

    def logits(
        self,
        params: Mapping[str, Tensor] | None = None,
        *,
        inputs: Int64[Tensor, "batch seq"] | None = None,
        embeddings: Float[Tensor, "batch seq model"] | None = None,
        pixels: Float[Tensor, "batch channels height width"] | None = None,
        mask: Bool[Tensor, "batch ..."] | None = None,
    ) -> Float[Tensor, "batch ... classes"]:
        """The model's logits, differentiable in ``params`` and in embeddings or pixels; without side effects.

        Args:
            params: values by parameter name in the place of the module's own; the module's own for those not named.
            inputs: token ids; exactly one of ``inputs``, ``embeddings`` and ``pixels`` is given.
            embeddings: as ``embed`` makes them; ids and their embeddings give the same logits.
            pixels: in [0, 1].
            mask: which tokens are real, padding on either side; all if None. Ignored for pixels.

        Returns:
            ``[batch classes]`` for a classifier (one that reads every token is pooled at the last real one, whatever
            the padding token), ``[batch seq vocab]`` for a language model.

        Raises:
            ValueError: unless exactly one input is given.
        """
        given = [each for each in (inputs, embeddings, pixels) if each is not None]
        if len(given) != 1:
            raise ValueError(f"Give exactly one of inputs, embeddings and pixels, not {len(given)}.")
        pooled = self.loss.labels_records and self.anatomy.per_token
        head = self.anatomy.head.module if pooled and self.anatomy.head is not None else None
        if pixels is not None and self.pixel_mean:
            mean, std = (pixels.new_tensor(each).reshape(-1, 1, 1) for each in (self.pixel_mean, self.pixel_std))
            given = [(pixels - mean) / std]
        return _call(self, params, _Forward(self.module, head), (given[0], mask))


_PREFIX = "subject"


class _Embedding(nn.Module):
    """Looks up embeddings inside a functional call of the whole module, so that tied and replaced weights are seen."""

    def __init__(self, subject: nn.Module) -> None:
        super().__init__()
        self.subject = subject

    def forward(self, ids: Tensor) -> Tensor:
        return token_embedding(self.subject)(ids)


class _Forward(nn.Module):
    """From ids, embeddings or pixels to logits. Ids are embedded first: one path for the client and the attacker."""

    def __init__(self, subject: nn.Module, pooled_head: str | None) -> None:
        super().__init__()
        self.subject = subject
        self.pooled_head = pooled_head

    def forward(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        if reads_pixels(self.subject):
            return run_module(self.subject, inputs).logits
        embedded = inputs if inputs.is_floating_point() else token_embedding(self.subject)(inputs)
        if self.pooled_head is None:
            return run_module(self.subject, embedded, mask).logits
        # The library's own pooling looks for the padding id, which embeddings do not have.
        hidden = run_module(backbone(self.subject), embedded, mask).last_hidden_state
        if mask is None:
            last = hidden[:, -1]
        else:
            place = (mask * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).amax(dim=-1).clamp(min=1) - 1
            last = hidden[torch.arange(hidden.shape[0], device=hidden.device), place]
        return self.subject.get_submodule(self.pooled_head)(last)


def _call(
    subject: Subject, params: Mapping[str, Tensor] | None, caller: nn.Module, arguments: tuple[Tensor | None, ...]
) -> Tensor:
    # A new module is born in train mode; the subject inside keeps its own mode, dropout included.
    if params is None:
        return caller(*arguments)
    named = {f"{_PREFIX}.{name}": value for name, value in params.items()}
    return torch.func.functional_call(caller, named, arguments)
