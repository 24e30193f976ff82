"""PRECODE at the end of a model leaves the layers below it readable. The convolutional bottleneck stands early, so that
little is left below it. Must not touch the module that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from gradleak.core.errors import ModelError
from gradleak.core.stage import ModelStage
from gradleak.defenses._tensors import require
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.models import Subject
from gradleak.models.calling import image_shape
from gradleak.models.running.bottleneck import ConvolutionalBottleneck
from gradleak.models.running.layer_order import parameters_above
from gradleak.models.running.noise_inputs import copied_structure
from gradleak.models.silence import seeded

_CHILD = "cvb"


@dataclass(frozen=True, kw_only=True, slots=True)
class CVB(ModelStage):
    """Puts a convolutional variational bottleneck behind one block of a vision transformer.

        [μ, s] = conv(x),   z = μ + softplus(clip(s, -5, 5)) ξ, ξ ~ N(0, I),   x' = conv of size 1 (z);   no biases
        loss + β · mean over records of KL(N(μ, std²) ‖ N(0, I)) in bits

    Args:
        block: number of the block, from 0, behind which it stands.
        kernel: of the first convolution, odd.
        beta: β, at least 0.
        seed: of the new layers' first weights, which everybody has.

    Raises:
        SpecError: for an argument out of range.
        ModelError: unless the model is a vision transformer with a square grid of patches and so many blocks.

    Guarantees:
        None of privacy. The gradients of the first blocks and of the patch projection stand below the bottleneck. An
        informed attacker leaves everything behind it out, its decoder too, and searches ξ along with the pixels.

    Source: arXiv 2309.04515 and the notes on its public code. Channels of the code: max(8, width / 2).
    Deviations: KL is PRECODE's; the public code takes the softplus for a log-variance, which its sampling does not. The
        class token goes through the same convolutions as an image of one patch. Accuracy is measured at ξ = 0.
    """

    summary: ClassVar[str] = "Puts a random convolutional code behind the first block of a vision transformer."

    block: int = 0
    kernel: int = 3
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.block >= 0, "cvb", "block", self.block, "at least 0")
        require(self.kernel >= 1 and self.kernel % 2 == 1, "cvb", "kernel", self.kernel, "odd and at least 1")
        require(self.beta >= 0, "cvb", "beta", self.beta, "at least 0")

    def change(self, subject: Subject) -> Subject:
        anatomy = subject.anatomy
        if subject.modality != "image":
            raise ModelError(
                f"cvb: {subject.name} reads text. For text models, precode puts a bottleneck before the head."
            )
        if self.block >= len(anatomy.blocks):
            raise ModelError(
                f"cvb: {subject.name} has {len(anatomy.blocks)} blocks, so there is no block {self.block}."
            )
        width = anatomy.hidden_size
        with seeded(self.seed):
            code = max(8, width // 2)
            layer = ConvolutionalBottleneck(width, code, self.kernel, self.beta, _grid(subject))
        module = copied_structure(subject.module)
        place = module.get_submodule(anatomy.blocks[self.block].path)
        place.add_module(_CHILD, layer.to(next(subject.module.parameters())))
        place.register_forward_hook(_through)
        return replace(subject, module=module.eval())

    def ignored(self, trainer: ClientTrainer) -> frozenset[str]:
        home = trainer.subject.anatomy.blocks[self.block].path
        # The encoder is matched: it makes the code's mean, which the input fixes.
        above = parameters_above(trainer.subject, f"{home}.{_CHILD}")
        return above - {f"{home}.{_CHILD}.encoder.weight"}


def _through(block: nn.Module, args: Any, output: Any) -> Any:
    layer = block.get_submodule(_CHILD)
    return layer(output) if isinstance(output, torch.Tensor) else (layer(output[0]), *output[1:])


def _grid(subject: Subject) -> tuple[int, int]:
    """Rows and columns of patches."""
    _, height, width = image_shape(subject.module)
    config: Any = subject.module.config
    size = getattr(config, "patch_size", None)
    if not isinstance(size, int) or height % size or width % size:
        raise ModelError(f"cvb: {subject.name} does not cut its images into a grid of square patches.")
    return height // size, width // size
