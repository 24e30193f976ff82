"""PRECODE lets the last features pass through a random code, so that the gradients behind it come from a draw that
the attacker does not know. Must not touch the module that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from gradleak.core.errors import ModelError
from gradleak.core.stage import ModelStage
from gradleak.defenses._tensors import require
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.models import Subject
from gradleak.models.running.bottleneck import LinearBottleneck
from gradleak.models.running.layer_order import parameters_above
from gradleak.models.running.noise_inputs import copied_structure
from gradleak.models.silence import seeded

_CHILD = "precode"


@dataclass(frozen=True, kw_only=True, slots=True)
class PRECODE(ModelStage):
    """Puts a variational bottleneck before the head; client and server train and share its weights like all others.

        [μ, s] = W_e h + b_e,   z = μ + softplus(s) ξ, ξ ~ N(0, I),   h' = W_d z + b_d
        loss + β · mean over records of KL(N(μ, softplus(s)²) ‖ N(0, I)) in bits

    Args:
        code: K, length of z, at least 1.
        beta: β, at least 0.
        seed: of the new layers' first weights, which everybody has.

    Raises:
        SpecError: for an argument out of range.
        ModelError: if the model has no head.

    Guarantees:
        None of privacy. The gradients of the bottleneck and of the head depend on ξ, which only the client knows. Those
        of all layers below depend on it too, but weakly, and what they tell by their structure (rows of an embedding,
        spans of inputs) is untouched: ``span`` and ``token_support`` read layers below the bottleneck.
        An informed attacker leaves bottleneck and head out and searches ξ along with the input.

    Source: arXiv 2108.04725 and the notes on its public code (KL in bits).
    Deviations: where the head reads every token, every token has its own code. Accuracy is measured at ξ = 0; the public
        code samples at test time too.
    """

    summary: ClassVar[str] = "Sends the features before the head through a random code (variational bottleneck)."

    code: int = 256
    beta: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.code >= 1, "precode", "code", self.code, "at least 1")
        require(self.beta >= 0, "precode", "beta", self.beta, "at least 0")

    def change(self, subject: Subject) -> Subject:
        head = subject.anatomy.head
        if head is None:
            raise ModelError(f"precode: {subject.name} has no head before which a bottleneck could stand.")
        module = copied_structure(subject.module)
        with seeded(self.seed):
            layer = LinearBottleneck(head.in_features, self.code, self.beta)
        place = module.get_submodule(head.module)
        # As a child of the head the bottleneck leaves all other parameters their names.
        place.add_module(_CHILD, layer.to(subject.module.get_parameter(head.weight)))
        place.register_forward_pre_hook(_through)
        return replace(subject, module=module.eval())

    def ignored(self, trainer: ClientTrainer) -> frozenset[str]:
        head = trainer.subject.anatomy.head
        return frozenset() if head is None else parameters_above(trainer.subject, f"{head.module}.{_CHILD}")


def _through(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (head.get_submodule(_CHILD)(args[0]), *args[1:])
