"""The verbs in one place. Must not import torch: each verb does so when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from gradleak import __version__
from gradleak.cli.common.multi_values import SpreadCommand
from gradleak.cli.verbs.account import account
from gradleak.cli.verbs.attack import attack
from gradleak.cli.verbs.audit import audit
from gradleak.cli.verbs.bound import bound
from gradleak.cli.verbs.catalogue import explain, list_, schema
from gradleak.cli.verbs.check import check
from gradleak.cli.verbs.compare import compare
from gradleak.cli.verbs.doctor import doctor
from gradleak.cli.verbs.inspect import inspect
from gradleak.cli.verbs.predict import predict
from gradleak.cli.verbs.recommend import recommend
from gradleak.cli.verbs.report import report

app = typer.Typer(
    name="gradleak",
    help="Audits what one shared update of a transformer gives away: attacks, defenses, a verdict with evidence.",
    epilog="Audit your own models and protocols only. Exit codes: 0 done, 1 a lint, a claim or a policy failed, 2 usage error, 3 nothing "
    "conclusive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradleak {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Holds the options that stand before the verb."""


app.command("audit", cls=SpreadCommand)(audit)
app.command("attack", cls=SpreadCommand)(attack)
app.command("inspect", cls=SpreadCommand)(inspect)
app.command("predict", cls=SpreadCommand)(predict)
app.command("account")(account)
app.command("bound", cls=SpreadCommand)(bound)
app.command("report")(report)
app.command("compare")(compare)
app.command("check")(check)
app.command("recommend")(recommend)
app.command("list")(list_)
app.command("explain")(explain)
app.command("schema")(schema)
app.command("doctor")(doctor)
