"""Forward and backward passes of one vision transformer in float64: what its maps read, which tokens train them, and the gradient of
one record. Must not know updates or attacks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradleak.mechanics.probing.probe import StopForward
from gradleak.models import Subject
from gradleak.models.reading.patches import hooked, in_double
from gradleak.models.running.tracing import evaluating


class _WideSoftmax(TorchFunctionMode):
    """Leaves a softmax in the format of its input: models ask for float32, which would round float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function is nn.functional.softmax and given.get("dtype") == torch.float32:
            given.pop("dtype")
        return function(*args, **given)


@dataclass(frozen=True, kw_only=True, slots=True)
class DoublePass:
    """One model in float64.

    Attributes:
        state: parameters and buffers by name. Pictures are given as the model reads them, that is normalized.
    """

    subject: Subject
    state: Mapping[str, Tensor]

    @staticmethod
    def of(subject: Subject) -> DoublePass:
        return DoublePass(subject=subject, state=in_double(subject.module))

    def logits(self, pictures: Tensor, replaced: Mapping[str, Tensor] | None = None) -> Tensor:
        """``[batch classes]``, with some parameters replaced."""
        values = dict(self.state) | dict(replaced or {})
        with _WideSoftmax(), evaluating(self.subject.module):
            return torch.func.functional_call(self.subject.module, values, kwargs={"pixel_values": pictures}).logits

    def inputs_of(self, paths: Sequence[str], pictures: Tensor) -> list[Float[Tensor, "batch seq features"]]:
        """What the maps at ``paths`` read; the pass ends when all were reached. Differentiable, also in forward mode."""
        seen: dict[str, Tensor] = {}

        def watcher(path: str) -> Any:
            def see(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen[path] = args[0]
                if len(seen) == len(paths):
                    raise StopForward

            return see

        module = self.subject.module
        handles = [module.get_submodule(path).register_forward_pre_hook(watcher(path)) for path in paths]
        with hooked(handles), contextlib.suppress(StopForward):
            self.logits(pictures)
        return [seen[path].reshape(pictures.shape[0], -1, seen[path].shape[-1]) for path in paths]

    def trained_tokens(self, paths: Sequence[str]) -> list[Bool[Tensor, " seq"]]:
        """For every map the tokens whose error signals at its output are not zero, of a generic picture."""
        made: dict[str, Tensor] = {}

        def watcher(path: str) -> Any:
            def see(_module: nn.Module, _args: Any, output: Tensor) -> None:
                made[path] = output

            return see

        module = self.subject.module
        handles = [module.get_submodule(path).register_forward_hook(watcher(path)) for path in paths]
        with hooked(handles), torch.enable_grad():
            logits = self.logits(self.generic_picture().requires_grad_())
        weights = torch.cos(torch.arange(logits.numel(), dtype=torch.float64)).reshape(logits.shape)
        slopes = torch.autograd.grad(
            (logits * weights).sum(), [made[path] for path in paths], allow_unused=True, materialize_grads=True
        )
        return [slope.reshape(-1, slope.shape[-1]).abs().amax(dim=1) > 0 for slope in slopes]

    def generic_picture(self) -> Float[Tensor, "1 channels height width"]:
        """A picture without symmetries; not random."""
        shape = self.subject.pixel_shape
        return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7).reshape(1, *shape)

    def gradient(
        self, names: Sequence[str], picture: Tensor, label: int, *, leaves: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Gradient of one record's cross-entropy by parameter name."""
        held = leaves or {name: self.state[name].detach().requires_grad_() for name in names}
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(self.logits(picture, held), torch.tensor([label]))
            slopes = torch.autograd.grad(
                loss, [held[name] for name in names], allow_unused=True, materialize_grads=True
            )
        return dict(zip(names, slopes, strict=True))

    def slopes_in(self, names: Sequence[str], picture: Tensor, label: int) -> dict[str, Tensor]:
        """As ``gradient``, in a form that ``torch.func`` can differentiate again."""

        def loss(held: Mapping[str, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self.logits(picture, held), torch.tensor([label]))

        return torch.func.grad(loss)({name: self.state[name] for name in names})
