"""Plan → cells → records: runs attacks against channels, judges them, and keeps what came out.

The package is also the library's main verb, ``gradleak.audit(model, batch, ...)``: see ``gradleak.api.audit`` for its
arguments. Must not know the report or the command line.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A package that can be called, because the import system binds ``gradleak.audit`` to it and users call that name."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        # By name and at the call: the packages below the edge must not depend on it.
        return import_module("gradleak.api").audit(*args, **settings)


sys.modules[__name__].__class__ = _Verb
