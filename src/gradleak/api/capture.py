"""What a client is about to send is saved with what is known about it. Must not import torch before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradleak.api._methods import chain_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gradleak.api._methods import Defense


class Capture:
    """``gradleak.capture``: saves an update; its methods make one from what a framework holds."""

    def __call__(
        self,
        update: Mapping[str, Any],
        path: str | Path,
        *,
        model: str | None = None,
        loss: str | None = None,
        classes: int | None = None,
        batch_size: int | None = None,
        seq_len: int | None = None,
        framed: bool | None = None,
        share: str | None = None,
        defenses: Defense | None = None,
        mask: Any = None,
        labels: Any = None,
    ) -> None:
        """Saves an update, parameter name → gradient or delta, with what is known about it, for ``gradleak attack``.

        Everything left out is unknown to the adversary; attacks that need it say so.

        Args:
            update: what is shared, by the names of the model's parameters: tensors, arrays or lists as they come; None and whole numbers are
                left out.
            path: folder to write: tensors as safetensors and a JSON manifest.
            model: folder, hub id or name of the model that was trained.
            loss: ``"classification"``, ``"causal-lm"`` or ``"masked-lm"``.
            classes: of a classification head.
            batch_size, seq_len: records of the batch, and tokens of the padded batch.
            framed: whether the records are texts as the model's tokenizer frames and pads them.
            share: how the client trained, such as ``"gradient"``; without it no attack can replay the client.
            defenses: the chain in use, as text, a ``gradleak.Stage`` or a sequence of stages; ``"none"`` if there is none.
            mask: which tokens of the batch are real, ``[batch seq]``.
            labels: of the batch, where the adversary is to know them.

        Raises:
            DataError: if the update is empty or not finite.
            UsageError: naming every fact that cannot be.
            SpecError, UnknownNameError: for a spec that cannot be read.
        """
        from gradleak.harness.captured.capturing import save_capture

        save_capture(
            update,
            path,
            model=model,
            loss=loss,
            classes=classes,
            batch_size=batch_size,
            seq_len=seq_len,
            framed=framed,
            share=share,
            defenses=None if defenses is None else chain_text(defenses),
            mask=mask,
            labels=labels,
        )

    @staticmethod
    def from_gradients(model: nn.Module) -> dict[str, Tensor]:
        """The gradients that ``backward`` left in a module, by parameter name; call it before the optimizer clears them.

        Raises:
            DataError: if no parameter has one.
        """
        from gradleak.harness.captured import capturing

        return capturing.from_gradients(model)

    @staticmethod
    def from_delta(before: Mapping[str, Any] | nn.Module, after: Mapping[str, Any] | nn.Module) -> dict[str, Tensor]:
        """After minus before, of what training changed.

        Args:
            before: weights by name, such as a state dict that was cloned when the round began.

        Raises:
            DataError: if nothing changed, or a tensor is missing or has another shape.
        """
        from gradleak.harness.captured import capturing

        return capturing.from_delta(before, after)

    @staticmethod
    def from_peft(model: nn.Module, before: Mapping[str, Any]) -> dict[str, Tensor]:
        """What training changed in the adapters of a peft model, by the names of peft's own state dict.

        Args:
            before: a cloned ``peft.get_peft_model_state_dict(model)`` of when the round began.

        Raises:
            DataError: as ``from_delta``.
            UsageError: if peft is not installed.
        """
        from gradleak.harness.captured import capturing

        return capturing.from_peft(model, before)


capture = Capture()
