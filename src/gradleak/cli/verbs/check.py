"""A gate for continuous integration. It passes only what a run shows to keep the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradleak.cli.common.options import Json
from gradleak.cli.common.output import FAILED, INCONCLUSIVE, errors_shown, out, print_json

_STYLES = {"pass": "green", "inconclusive": "yellow", "fail": "bold red"}


def check(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder that `gradleak audit` wrote.", show_default=False)
    ],
    policy: Annotated[
        Path,
        typer.Option(
            "--policy", metavar="FILE", help="TOML: [[rule]] tables, such as metric and at_most; see the docs."
        ),
    ],
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.")] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", metavar="FILE", help="Also write SARIF 2.1.0.")] = None,
    as_json: Json = False,
) -> None:
    """Hold a run against a policy. Exit code 0 if it is kept, 1 if it is broken, 3 if the run cannot tell."""
    with errors_shown():
        from gradleak import api
        from gradleak.harness.running.store import write_atomically
        from gradleak.report.gate import files as gate_files
        from gradleak.report.gate.policy import Outcome

        answer = api.check(run, policy)
        if junit is not None:
            write_atomically(junit, gate_files.junit(answer).encode())
        if sarif is not None:
            write_atomically(sarif, gate_files.sarif(answer, policy).encode())
        findings = [
            {"rule": one.rule, "defense": one.defense, "outcome": one.outcome.value, "sentence": one.sentence}
            for one in answer.findings
        ]
        if as_json:
            print_json({"run": str(run), "outcome": answer.outcome.value, "findings": findings})
        else:
            for one in findings:
                line = f"{one['outcome']}: {one['rule']}, {one['defense']}: {one['sentence']}"
                out().print(line, style=_STYLES[one["outcome"]], markup=False, highlight=False, soft_wrap=True)
        if answer.outcome is not Outcome.PASS:
            raise typer.Exit(FAILED if answer.outcome is Outcome.FAIL else INCONCLUSIVE)
