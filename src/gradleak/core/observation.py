"""Why: the update and what the adversary knows; nothing else reaches an attack."""

from __future__ import annotations

from dataclasses import dataclass

from gradleak.core.knowledge import Knowledge
from gradleak.core.update import Update


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What one adversary holds about one batch."""

    update: Update
    knowledge: Knowledge
