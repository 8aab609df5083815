"""The ``probe`` command: each subcommand is a thin layer over one documented Python function."""

from __future__ import annotations

import os
import sys

# Spinning OpenMP threads starve processes that decode images beside the model; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    """Run the command; bad input ends with one line and exit code 2, a failed run with exit code 1."""
    from rich.console import Console

    from grounding.errors import BadInput, RunFailed
    from probe.cli.app import app

    try:
        app()
    except (BadInput, RunFailed) as error:
        Console(stderr=True).print(f"[bold red]Error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, BadInput) else 1)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; what is complete is kept, the same command goes on from there.")
        sys.exit(130)


def _plain(error: Exception) -> str:
    from rich.markup import escape

    return escape(" ".join(str(error).split()))
