"""The ``probe`` command: each subcommand is a thin layer over one documented Python function."""

from __future__ import annotations

import os
import sys
from typing import Any

# Bars of transformers and of the hub, like ours, are for terminals; read when they are imported.
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Spinning OpenMP threads starve processes that decode images beside the model; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


INTERRUPTED = 130  # what Typer makes of Ctrl-C


def main() -> None:
    """Run the command; bad input ends with one line and exit code 2, a failed run with exit code 1."""
    import typer

    from grounding.errors import BadInput, RunFailed
    from probe.cli.app import app

    wrong_usage: Any = typer.BadParameter.__base__  # of missing options and unknown commands too; it has no other name
    try:
        code = app(prog_name="probe", standalone_mode=False)
    except wrong_usage as error:
        code = error.exit_code
        if message := _told(error):  # none where the help was printed instead
            _complain(f"{message}; help: {_command(error)} --help")
    except (BadInput, RunFailed) as error:
        code = 2 if isinstance(error, BadInput) else 1
        _complain(str(error))
    if code == INTERRUPTED:
        print("Interrupted; what is complete is kept, the same command goes on from there.", file=sys.stderr)
    sys.exit(code)


def _told(error: Any) -> str:
    """A wrong usage in words, with the value that was given: pydantic, which reads values for Typer, leaves it out."""
    message = error.format_message().rstrip(".")
    if not hasattr(error.__cause__, "errors"):
        return message
    found = error.__cause__.errors()[0]
    accepted = found["msg"].partition(",")[0].removeprefix("Input should be ")
    return message.replace(error.message, f"{found['input']!r}; accepted: {accepted}")


def _command(error: Any) -> str:
    """The command that was used wrongly; an option without its value leaves it to the command line to say which."""
    if error.ctx is not None:
        return error.ctx.command_path
    return " ".join(["probe", *(word for word in sys.argv[1:2] if not word.startswith("-"))])


def _complain(message: str) -> None:
    """One line on standard error."""
    from rich.console import Console
    from rich.markup import escape

    line = escape(" ".join(message.split()))
    Console(stderr=True).print(f"[bold red]Error:[/] {line}", highlight=False, soft_wrap=True)
