"""The subcommands, registered under ``probe``."""

from __future__ import annotations

import typer

from probe.cli import (
    convert,
    data,
    demo,
    evaluate,
    export,
    extract,
    finetune,
    heads,
    inspect,
    intervene,
    push,
    report,
    study,
    sweep,
    visualize,
)

app = typer.Typer(
    name="probe",
    help="Does a vision-and-language model ground the phrases it reads, where inside, and does its task use it?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for module in (
    demo, finetune, evaluate, extract, sweep, heads, intervene, visualize, report, export, study, inspect, convert,
    push,
):  # fmt: skip
    app.command(module.NAME, epilog=module.EPILOG)(module.command)
app.add_typer(data.app)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("phrase-grounding-probe"))
        raise typer.Exit
