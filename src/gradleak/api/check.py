"""A gate for continuous integration: does a run show that a policy is kept? Must not import torch before it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradleak.report.gate.policy import Answer


def check(run: str | Path, policy: str | Path) -> Answer:
    """Checks a run against a policy.

    Args:
        run: a folder that an audit wrote.
        policy: a TOML file of ``[[rule]]`` tables, each with a ``metric`` and ``at_most`` or ``at_least``, or with
            ``epsilon_at_most``; ``defense`` and ``attack`` narrow a rule.

    Returns:
        One finding per rule and defense; its ``outcome`` is ``PASS`` only if the run shows that every rule is kept,
        ``INCONCLUSIVE`` if it shows neither.

    Raises:
        DataError: if the folder holds no run, or the policy cannot be read or holds no rule.
        SpecError, UnknownNameError: for a rule that says nothing, or names something that does not exist.
    """
    from gradleak.harness.running.store import read_records
    from gradleak.report.gate import policy as gate

    return gate.check(read_records(Path(run)), gate.read_policy(Path(policy)))
