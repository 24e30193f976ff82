"""Why: the training losses, written once for the client (hard labels) and for the attacker (soft ones).

Several candidate batches are scored in one pass: records are stacked group by group, and every group is reduced on
its own, exactly as if it had been trained alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Loss = Literal["classification", "causal-lm", "masked-lm", "squared"]


def group_losses(
    logits: Float[Tensor, "records ..."], targets: Float[Tensor, "records ..."], loss: Loss, *, groups: int = 1
) -> Float[Tensor, " groups"]:
    """Mean cross-entropy of each group of records; for ``squared`` the mean of minus the target's own logit.

    Args:
        logits: class scores ``[groups·batch classes]`` or token scores ``[groups·batch seq vocab]``.
        targets: probabilities of the same shape; an all-zero row is a position without loss.
        loss: ``causal-lm`` predicts position t + 1 from position t; the mean runs over positions that carry loss.
            ``squared``: logits are minus half the squared distances to each class's target.

    Source:
        The reductions of torch's ``cross_entropy(reduction="mean", ignore_index=-100)``; checked against it in tests.
    """
    if loss == "causal-lm":
        logits, targets = logits[:, :-1], targets[:, 1:]
    scores = logits if loss == "squared" else torch.log_softmax(logits, dim=-1)
    terms = -(targets * scores).sum(-1).reshape(groups, -1)
    weights = targets.detach().sum(-1).reshape(groups, -1)
    return terms.sum(1) / weights.sum(1).clamp_min(torch.finfo(weights.dtype).tiny)
