"""Every verb as a plain function; a verb of the command line calls the function of its name. Must not import torch before one is
called.
"""

from __future__ import annotations

from gradleak.api.account import Account, account
from gradleak.api.attack import attack
from gradleak.api.audit import Audit, audit
from gradleak.api.bound import Bounds, bound
from gradleak.api.capture import capture
from gradleak.api.check import check
from gradleak.api.compare import compare
from gradleak.api.doctor import doctor
from gradleak.api.inspect import inspect_update
from gradleak.api.listing import Method, explain, list_methods
from gradleak.api.predict import predict
from gradleak.api.recommend import recommend
from gradleak.api.report import report

__all__ = [
    "Account",
    "Audit",
    "Bounds",
    "Method",
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
    "predict",
    "recommend",
    "report",
]
