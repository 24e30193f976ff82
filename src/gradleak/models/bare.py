"""The layer of the theory as a module that can be trained, shared and attacked like any other: softmax attention with
nothing around it, and the squared distance to a public target. The one place where the assumptions of exact recovery in
closed form hold. Must not know the theory.

    Y = Σ_h S_h X V_h O_h,    L = ½ ‖Y − T_label‖²

A record is a matrix X (an image of one channel with a token per row); the label chooses one of the public targets T.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradleak.core.errors import ModelError, UnknownNameError
from gradleak.core.loss import SQUARED
from gradleak.models.anatomy import Anatomy, Block, LinearMap
from gradleak.models.silence import seeded
from gradleak.models.subject import Subject

NAME = "bare:attention"
_SIZES = {"hidden_size": 16, "num_attention_heads": 2, "seq_len": 4}


class BareAttention(nn.Module):
    """Softmax attention without norm, residual, bias, position or mask; logits are minus half squared distances.

    Args:
        heads: of width ``width / heads``.
        targets: T, one matrix per class. Public: part of the model.
        center, spread: of the records; X is a record less ``center`` over ``spread``.

    Raises:
        ModelError: if the heads do not divide the width.
    """

    main_input_name = "pixel_values"

    def __init__(
        self, *, heads: int, targets: Float[Tensor, "classes seq width"], center: float = 0.0, spread: float = 1.0
    ) -> None:
        super().__init__()
        _, seq, width = targets.shape
        if heads < 1 or width % heads:
            raise ModelError(f"The width must be a multiple of the number of heads, got {width} and {heads}.")
        self.heads, self.center, self.spread = heads, center, spread
        self.config = SimpleNamespace(num_channels=1, image_size=(seq, width))
        self.register_buffer("targets", targets)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        for each in (self.query, self.key, self.value, self.output):
            nn.init.normal_(each.weight, std=width**-0.5)

    def forward(self, pixel_values: Float[Tensor, "batch 1 seq width"]) -> SimpleNamespace:
        x = (pixel_values.squeeze(1) - self.center) / self.spread
        q, k, v = (
            each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)
        y = self.output((weights @ v).transpose(1, 2).flatten(2))
        targets: Tensor = self.get_buffer("targets").to(y.dtype)
        return SimpleNamespace(logits=-0.5 * (y.unsqueeze(1) - targets).square().sum((-2, -1)))


def load_bare(name: str, *, loss: str | None, classes: int, settings: Mapping[str, object], seed: int) -> Subject:
    """``bare:attention`` with random weights and normal targets; records in [0, 1] hold X within three deviations.

    Args:
        settings: of ``hidden_size``, ``num_attention_heads`` and ``seq_len`` (tokens of a record).

    Raises:
        ModelError: for another name, another loss, or sizes that are no positive whole numbers.
        UnknownNameError: for another setting.
    """
    if name != NAME or loss not in {None, SQUARED.name}:
        raise ModelError(f"The layer of the theory is {NAME} with loss squared, not {name} with {loss or SQUARED}.")
    for key in settings:
        if key not in _SIZES:
            raise UnknownNameError(f"setting of {NAME}", key, _SIZES)
    sizes = _SIZES | {key: int(str(value)) if str(value).isdigit() else 0 for key, value in settings.items()}
    if min(sizes.values()) < 1:
        raise ModelError(
            f"{NAME} takes positive whole numbers, got {', '.join(f'{k}={v}' for k, v in settings.items())}."
        )
    with seeded(seed):
        targets = torch.randn(classes, sizes["seq_len"], sizes["hidden_size"])
        module = BareAttention(heads=sizes["num_attention_heads"], targets=targets, center=0.5, spread=1 / 6)
    return bare_subject(module, name=name)


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
    return Subject(name=name, module=module.eval(), anatomy=anatomy, tokenizer=None, loss=SQUARED, classes=classes)
