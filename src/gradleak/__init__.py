"""gradleak audits what one shared update of a transformer gives away.

    import gradleak
    audit = gradleak.audit("path/or/id", ["a private sentence"], defenses=["gaussian(relative_std=0.5)"])
    print(audit.verdict.headline)

Importing the package is free: torch and transformers are loaded by the first call that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradleak.core.version import VERSION

if TYPE_CHECKING:
    from gradleak.api import (
        Audit,
        account,
        attack,
        audit,
        bound,
        capture,
        check,
        compare,
        doctor,
        explain,
        inspect_update,
        list_methods,
        predict,
        recommend,
    )
    from gradleak.core.attack import Attack, Candidate, Clock, Reconstruction, Status
    from gradleak.core.batch import Batch
    from gradleak.core.errors import GradleakError
    from gradleak.core.knowledge import Observation
    from gradleak.core.metric import Metric, Score
    from gradleak.core.record import Record
    from gradleak.core.stage import Stage
    from gradleak.core.update import Update
    from gradleak.harness.captured.files import save_observation
    from gradleak.harness.captured.inspection import Inspection
    from gradleak.harness.captured.loading import load_observation
    from gradleak.models import load_subject

__version__ = VERSION

_HOMES = {
    "Attack": "gradleak.core.attack",
    "Audit": "gradleak.api",
    "Batch": "gradleak.core.batch",
    "Candidate": "gradleak.core.attack",
    "Clock": "gradleak.core.attack",
    "GradleakError": "gradleak.core.errors",
    "Inspection": "gradleak.harness.captured.inspection",
    "Metric": "gradleak.core.metric",
    "Observation": "gradleak.core.knowledge",
    "Reconstruction": "gradleak.core.attack",
    "Record": "gradleak.core.record",
    "Score": "gradleak.core.metric",
    "Stage": "gradleak.core.stage",
    "Status": "gradleak.core.attack",
    "Update": "gradleak.core.update",
    "account": "gradleak.api",
    "attack": "gradleak.api",
    "audit": "gradleak.api",
    "bound": "gradleak.api",
    "capture": "gradleak.api",
    "check": "gradleak.api",
    "compare": "gradleak.api",
    "doctor": "gradleak.api",
    "explain": "gradleak.api",
    "inspect_update": "gradleak.api",
    "list_methods": "gradleak.api",
    "load_observation": "gradleak.harness.captured.loading",
    "load_subject": "gradleak.models",
    "predict": "gradleak.api",
    "recommend": "gradleak.api",
    "save_observation": "gradleak.harness.captured.files",
}

__all__ = [
    "Attack",
    "Audit",
    "Batch",
    "Candidate",
    "Clock",
    "GradleakError",
    "Inspection",
    "Metric",
    "Observation",
    "Reconstruction",
    "Record",
    "Score",
    "Stage",
    "Status",
    "Update",
    "__version__",
    "account",
    "attack",
    "audit",
    "bound",
    "capture",
    "check",
    "compare",
    "doctor",
    "explain",
    "inspect_update",
    "list_methods",
    "load_observation",
    "load_subject",
    "predict",
    "recommend",
    "save_observation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradleak' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
