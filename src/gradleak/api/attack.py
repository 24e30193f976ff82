"""One captured update is attacked as its receiver could attack it. Must not import torch before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradleak.api._methods import attacks_text
from gradleak.core.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from gradleak.api._methods import Attacks
    from gradleak.core.knowledge import Observation
    from gradleak.harness.captured.attack import Finding


def attack(
    observation: Observation | str | Path,
    model: str | Path | nn.Module | None = None,
    *,
    attacks: Attacks | None = None,
    loss: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    budget: float | None = None,
    first_blocks: int | None = None,
    reference: str | Path | None = None,
) -> tuple[Finding, ...]:
    """Attacks one captured update. There is no truth to score against: every proposal stands with its own certificate.

    Args:
        observation: the path of a captured update, which needs ``model``; or a ``gradleak.Observation``, which holds it.
        model: the model that was trained: a module, a local folder, a hub id, ``"minilm"`` or ``"random:TYPE"``.
        attacks: a ``gradleak.Attack``, text such as ``"dlg(iterations=100)"``, or a sequence of either; the defaults if None.
        loss: ``"classification"``, ``"causal-lm"`` or ``"masked-lm"``; what the capture says, else the model's own, if None.
        settings: of the configuration of a ``"random:TYPE"`` model.
        tokenizer: of a module, to write recovered tokens as text.
        seed: of every random draw.
        budget: seconds for all attacks together, shared evenly; no limit if None.
        first_blocks: load only the embeddings, this many blocks and the head, and their tensors of the update.
        reference: where whole weights were captured, those that the round began with.

    Returns:
        One finding per attack: reconstruction, status and certificate. The recovered records are private data.

    Raises:
        UsageError: with cause and remedy.
    """
    from gradleak.core.knowledge import Observation
    from gradleak.harness.captured.attack import attack_capture, attack_observation
    from gradleak.harness.request.catalogue import make_attacks

    if not isinstance(observation, (Observation, str, Path)):
        raise UsageError(
            f"attack takes the path of a captured update or an Observation, not a {type(observation).__name__}. Save tensors first: "
            "gradleak.capture(update, path)."
        )
    text = attacks_text(attacks)
    if isinstance(observation, Observation):
        chosen = None if text is None else make_attacks(text)
        subject = observation.knowledge.facts.get("subject")
        if subject is None:
            raise UsageError("This observation does not hold the model. Load it with load_observation(path, subject).")
        return attack_observation(observation, subject, attacks=chosen, seed=seed, budget_seconds=budget)
    if model is None:
        raise UsageError("An observation on disk does not hold the model. Give attack(path, model).")
    return attack_capture(
        observation,
        model,
        attacks=text,
        loss=loss,
        settings=settings,
        tokenizer=tokenizer,
        seed=seed,
        budget_seconds=budget,
        first_blocks=first_blocks,
        reference=reference,
    ).findings
