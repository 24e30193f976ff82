"""Why: the layer of the theory as a module that can be trained, shared and attacked like any other: softmax attention with
nothing around it, and the squared distance to a public target. The one place where the assumptions of exact recovery in
closed form hold. Must not know the theory.

    Y = Σ_h S_h X V_h O_h,    L = ½ ‖Y − T_label‖²

A record is a matrix X (an image of one channel with a token per row); the label chooses one of the public targets T.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradleak.core.errors import ModelError
from gradleak.models.anatomy import Anatomy, Block, LinearMap
from gradleak.models.subject import Subject


class BareAttention(nn.Module):
    """Softmax attention without norm, residual, bias, position or mask; logits are minus half squared distances.

    Args:
        heads: of width ``width / heads``.
        targets: T, one matrix per class. Public: part of the model.

    Raises:
        ModelError: if the heads do not divide the width.
    """

    main_input_name = "pixel_values"

    def __init__(self, *, heads: int, targets: Float[Tensor, "classes seq width"]) -> None:
        super().__init__()
        _, seq, width = targets.shape
        if heads < 1 or width % heads:
            raise ModelError(f"The width must be a multiple of the number of heads, got {width} and {heads}.")
        self.heads = heads
        self.config = SimpleNamespace(num_channels=1, image_size=(seq, width))
        self.register_buffer("targets", targets)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        for each in (self.query, self.key, self.value, self.output):
            nn.init.normal_(each.weight, std=width**-0.5)

    def forward(self, pixel_values: Float[Tensor, "batch 1 seq width"]) -> SimpleNamespace:
        x = pixel_values.squeeze(1)
        q, k, v = (
            each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        y = self.output((weights @ v).transpose(1, 2).flatten(2))
        targets: Tensor = self.get_buffer("targets").to(y.dtype)
        return SimpleNamespace(logits=-0.5 * (y.unsqueeze(1) - targets).square().sum((-2, -1)))


def bare_subject(module: BareAttention, *, name: str = "bare attention") -> Subject:
    """The module as a subject with the squared loss."""
    classes, _, width = module.get_buffer("targets").shape

    def linear(path: str) -> LinearMap:
        return LinearMap(
            module=path,
            weight=f"{path}.weight",
            bias=None,
            in_features=width,
            out_features=width,
            input_first=False,
        )

    output = linear("output")
    block = Block(
        path="",
        attention_inputs=(linear("query"), linear("key"), linear("value")),
        fused=False,
        attention_output=output,
        mlp_inputs=(),
        mlp_output=None,
        norms=(),
        heads=module.heads,
        kv_heads=module.heads,
    )
    anatomy = Anatomy(
        kind="vision",
        token_embedding=None,
        position_embedding=None,
        position_kind="none",
        blocks=(block,),
        head=None,
        tied=False,
        per_token=False,
        hidden_size=width,
        vocab_size=0,
        max_positions=None,
    )
    return Subject(name=name, module=module.eval(), anatomy=anatomy, tokenizer=None, loss="squared", classes=classes)
