"""The table of valid combinations as the page ``docs/valid_combinations.md``, so that neither can drift from the other.

python -m gradleak.privacy.plan.combinations_page > docs/valid_combinations.md
"""

from __future__ import annotations

from gradleak.privacy.plan.axes import Combination
from gradleak.privacy.plan.combinations import COMBINATIONS

_HEAD = """# Valid combinations

Printed by `python -m gradleak.privacy.plan.combinations_page` from the table that the accountant reads. A plan that no row covers is
refused by name, with the nearest row (exit code 2 on the command line). Where add-or-remove has no meaning (batches of fixed size,
trees, a server that sees who takes part) the row of zero-out is taken and the output says so.

A *record* is one example, a *user* has at most k records that are clipped by themselves, a *client* is one whose whole update is clipped.
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_section(row) for row in COMBINATIONS)


def _section(row: Combination) -> str:
    lines = (
        ("mechanism", row.mechanism),
        ("clip", row.clip),
        ("unit", row.unit),
        ("drawn", row.drawn),
        ("sampling", row.sampling),
        ("view", row.view),
        ("relation", row.relation),
    )
    table = "".join(f"| {name} | {', '.join(values).replace('_', ' ')} |\n" for name, values in lines)
    return (
        f"\n## {row.name[0].upper()}{row.name[1:]}\n\n| axis | values |\n|---|---|\n{table}\n"
        f"- Law of one step: {row.law.replace('_', ' ')}.\n- Theorem: {row.theorem}.\n- Source: {row.source}.\n"
        f"- Composition: {row.composition}.\n- Computed by: {', '.join(row.accountants)}; the least is stated.\n"
    )


if __name__ == "__main__":
    print(page(), end="")
