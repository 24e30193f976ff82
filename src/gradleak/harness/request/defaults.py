"""What an audit does when nothing is said stands in one place. Must not import torch: defaults appear in signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradleak.core.batch import Modality

MODEL = "minilm"
BATCH_SIZE = 1
MAX_LENGTH = 32
THREAT = "honest_server"
SHARE = "gradient"
REPEATS = 1

ATTACKS: Mapping[Modality, str] = {
    "text": "token_support,span,dlg(iterations=40)",
    "image": "patch_exact,patch_batch,inverting_gradients(iterations=200),dlg",
}
"""Attacks of an audit that names none: exact ones first, then one that matches gradients."""

FRONTIER_ATTACKS: Mapping[Modality, str] = {**ATTACKS, "text": f"{ATTACKS['text']},sign_span"}
"""Attacks of a frontier that names none. A swept defense may leave nothing but signs, and a defense is as strong as the best
attack on it: one that reads signs must be among those tried."""

DEFENSES: tuple[str, ...] = (
    "prune(fraction=0.99)",
    "clip(max_norm=1.0)+gaussian(noise_multiplier=0.1)",
)
"""Defenses beside "none" of the demonstration: an audit without a model. An audit of an own model tests what it names."""
