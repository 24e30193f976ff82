"""One exception tree, so that callers can tell a wrong call from a wrong number. Must not know any layer above.

    GradleakError
    ├── UsageError            the caller can mend it; the command line exits with 2
    │   ├── SpecError         a malformed ``name(arg=value)`` specification
    │   ├── UnknownNameError  no attack, defense, metric, threat or setting of that name
    │   ├── DataError         a missing, empty or unreadable data file; a batch that cannot be drawn
    │   ├── ModelError        a model that cannot be loaded, read or trained as asked
    │   ├── UnsafeFileError   a pickled file, or one that would run code when opened
    │   └── PlanChangedError  a run folder that was made by another plan
    ├── KnowledgeError        an attack read a fact that it did not declare
    └── NotApplicableError    an attack cannot run on this observation; carries the reason

Numerical outcomes are no exceptions: they are a ``Status`` with a sentence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GradleakError(Exception):
    """Root of every error that gradleak raises on purpose."""


class UsageError(GradleakError):
    """Wrong use: the message says what was given, what was required and what to do."""


class SpecError(UsageError):
    """A specification string or mapping that cannot be read."""


class UnknownNameError(UsageError):
    """A name that nothing answers to."""

    def __init__(self, kind: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(given, names, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        super().__init__(f"Unknown {kind} {given!r}. {hint}Known: {', '.join(names) or 'none'}.")


class DataError(UsageError):
    """Data that is missing, empty, malformed or too small."""


class ModelError(UsageError):
    """A model that cannot be loaded, read by structure, or trained with the asked loss."""


class UnsafeFileError(UsageError):
    """A file format that can execute code when it is opened."""


class PlanChangedError(UsageError):
    """A run folder holds records of a different plan."""


class KnowledgeError(GradleakError):
    """An attack asked for a fact outside its declaration: a bug in the attack, never in the user's call."""


class NotApplicableError(GradleakError):
    """This attack cannot run on this observation; the message is the reason that the record will print."""
