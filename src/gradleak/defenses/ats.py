"""ATS trains on augmented images, by policies searched so that a gradient says little until an image is nearly right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.errors import DataError, SpecError
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._augmentations import COUNT, augment
from gradleak.defenses._obscuring import own_weights, require_images, shuffled
from gradleak.mechanics.client.trainer import ClientTrainer

LONGEST = 3
"""Changes in a policy."""

_GRID = 21
_FLOOR = 1e-5

Policy = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ATS(DataStage):
    """Trains on T(x), each image under one of a few policies, drawn at random; a policy is up to three fixed changes.

    ``search`` finds policies with the least privacy score among those that leave the data learnable:

        S_pri(T) = mean over images and i = 0, 1/20, ..., 1 of cos(∇L((1 − i)·n + i·T(x)), ∇L(T(x))),  n ~ U(0, 1)
        S_acc(T) = −Σ_k [ log(σ_k + ε) + 1/(σ_k + ε) ],  σ the eigenvalues of the correlation matrix of ∂f/∂x over
                   images T(x), f the sum of the logits of an untrained model, ε = 1e-5

    Args:
        policies: numbers of the changes of a policy joined by ``-``, policies joined by ``+``; a change is level
            n mod 5 of n // 5: brightness, contrast, rotation, shear x, shear y, shift x, shift y, solarize,
            posterize, sharpness.

    Raises:
        SpecError: for policies that cannot be read; when run, ``ModelError`` unless the model classifies images.

    Guarantees:
        Which policy an image gets is drawn from ``rng``; with one policy nothing is random and the surrogate is exact
        at the truth. With several the surrogate is the mean gradient over them. Labels stay. Pixels stay in [0, 1].
        An attack that matches the update finds T(x). No differential privacy.

    Source: arXiv 2011.12505, by the notes: both scores, the grid, the form of policies.
    Deviations: the fifty changes are ours (ten kinds at five strengths), so the numbers of published policies mean
        others. The better part by S_acc passes, not what exceeds a constant, which would depend on the number of
        images. The default policies are a rotation and a shear each way, chosen by hand: what ``search``
        picked on digits left a small vision transformer at chance.
    """

    summary: ClassVar[str] = "Trains on augmented images, by policies that were searched to make gradients tell less."

    policies: str = "11-17+12-16"

    def __post_init__(self) -> None:
        read_policies(self.policies)

    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        require_images(client, "ats")
        policies, inputs = read_policies(self.policies), client.data.inputs
        picks = torch.randint(len(policies), (client.data.size,), generator=rng, device=rng.device).to(inputs.device)
        changed = torch.stack([augment(inputs, policy) for policy in policies])
        return replace(client.data, inputs=changed[picks, torch.arange(client.data.size, device=inputs.device)])

    def surrogate(self, client: Client) -> TrainingData:
        policies, data = read_policies(self.policies), client.data
        return TrainingData(
            inputs=torch.cat([augment(data.inputs, policy) for policy in policies]),
            targets=data.targets.repeat(len(policies), *[1] * (data.targets.ndim - 1)),
            mask=data.mask.repeat(len(policies), *[1] * (data.mask.ndim - 1)),
        )

    def surrogate_is_identity(self) -> bool:
        return False

    def unknowns(self, records: int) -> tuple[int, ...]:
        return (records, len(read_policies(self.policies)))

    def guessed(self, inputs: Tensor, targets: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        flat = inputs.flatten(0, 1)
        changed = torch.stack([augment(flat, policy) for policy in read_policies(self.policies)], 1)
        shares = torch.softmax(draw, -1).flatten(0, 1)
        return torch.einsum("np,np...->n...", shares, changed).view(inputs.shape), targets


def read_policies(text: str) -> tuple[Policy, ...]:
    """Policies as numbers.

    Raises:
        SpecError: if the text is not of the form ``3-1-7+43-18``, or names a change that there is not.
    """
    if not re.fullmatch(r"\d+(-\d+)*(\+\d+(-\d+)*)*", text):
        raise SpecError(f"ats: policies={text} cannot be read. Write numbers like 3-1-7, policies joined by +.")
    policies = tuple(tuple(int(number) for number in part.split("-")) for part in text.split("+"))
    if any(len(policy) > LONGEST or max(policy) >= COUNT for policy in policies):
        raise SpecError(f"ats: policies={text}: a policy is at most {LONGEST} numbers below {COUNT}.")
    return policies


def write_policies(policies: Sequence[Policy]) -> str:
    """As ``read_policies`` reads them."""
    return "+".join("-".join(str(number) for number in policy) for policy in policies)


def privacy_score(trainer: ClientTrainer, data: TrainingData, rng: torch.Generator) -> float:
    """S_pri of images that were augmented already; one gradient per image and grid point. Lower is better."""
    weights, total = own_weights(trainer), 0.0
    for place in range(data.size):
        record = TrainingData(inputs=data.inputs[[place]], targets=data.targets[[place]], mask=data.mask[[place]])
        noise = torch.rand(record.inputs.shape, generator=rng, device=rng.device).to(record.inputs)
        steps = torch.linspace(0.0, 1.0, _GRID).to(record.inputs)
        blends = replace(
            record,
            inputs=torch.lerp(noise, record.inputs, steps.view(-1, 1, 1, 1)),
            targets=record.targets.expand(_GRID, -1),
            mask=record.mask.expand(_GRID),
        )
        gradients = trainer.example_gradients(weights, blends)
        rows = torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)
        total += float(torch.cosine_similarity(rows, rows[-1:], dim=1).mean())
    return total / data.size


def accuracy_score(trainer: ClientTrainer, data: TrainingData, rng: torch.Generator) -> float:
    """S_acc of images that were augmented already, at the model's weights in random order. Higher is better."""
    images = data.inputs.detach().requires_grad_()
    with torch.enable_grad():
        logits = trainer.subject.logits(shuffled(own_weights(trainer), rng), pixels=images)
        (slopes,) = torch.autograd.grad(logits.sum(), images)
    values = torch.linalg.eigvalsh(torch.corrcoef(slopes.flatten(1).double())).clamp_min(0.0) + _FLOOR
    return -float((values.log() + 1.0 / values).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A policy with its scores."""

    policy: Policy
    privacy: float
    accuracy: float


def search(
    trainer: ClientTrainer, data: TrainingData, *, candidates: int, share: float = 0.5, rng: torch.Generator
) -> tuple[Judged, ...]:
    """Random policies, those with the better S_acc kept, the least S_pri first; an empty policy is judged with them.

    Args:
        trainer: of a model that was trained a little on other data; data: a few images of the client.
        candidates: policies to draw; share: of them that S_acc lets pass, in (0, 1].

    Raises:
        DataError: for a single image, which correlates with nothing.
    """
    if data.size < 2:
        raise DataError("ats: a search of policies correlates several images, and one is given. Give at least two.")
    drawn: list[Policy] = [()]
    for _ in range(candidates):
        length = int(torch.randint(1, LONGEST + 1, (), generator=rng))
        drawn.append(tuple(torch.randint(COUNT, (length,), generator=rng).tolist()))
    seed = int(torch.randint(2**31, (), generator=rng))

    def stream() -> torch.Generator:
        # The same noise for every policy: scores then differ by the policy alone.
        return torch.Generator().manual_seed(seed)

    judged: list[Judged] = []
    for policy in drawn:
        changed = replace(data, inputs=augment(data.inputs, policy))
        judged.append(
            Judged(
                policy=policy,
                privacy=privacy_score(trainer, changed, stream()),
                accuracy=accuracy_score(trainer, changed, stream()),
            )
        )
    passed = sorted(judged, key=lambda policy_scores: -policy_scores.accuracy)[: max(1, round(share * len(judged)))]
    return tuple(sorted(passed, key=lambda policy_scores: policy_scores.privacy))
