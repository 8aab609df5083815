"""``probe inspect``."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grounding.devices import choose_device
from probe.cli.options import (
    AsJson,
    ChosenWeights,
    Device,
    ModelSizes,
    Tokenizer,
    loading,
    show_table,
)

if TYPE_CHECKING:
    from extract.self_checks import Check
    from grounding.checkpoint import Inspection

NAME = "inspect"
EPILOG = "Example: probe inspect vilt-aligner-grounded --verify"


def command(
    ckpt: Annotated[str, typer.Argument(help="Checkpoint file or folder, the name of a bundled one, or a run.")],
    weights: ChosenWeights = None,
    config: ModelSizes = None,
    tokenizer: Tokenizer = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the model's self-checks, or read a run again; exit 1 if one fails.")
    ] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """What a checkpoint holds, what became of every weight, and whether the model passes its self-checks; or a run."""
    if _is_run(ckpt):
        _show_run(ckpt, verify, as_json)
        return
    from grounding.checkpoint import inspect_checkpoint

    said = loading(tokenizer, weights, config)
    inspection = inspect_checkpoint(ckpt, **said, runnable=verify)
    result = describe(inspection, tokenizer)
    checks = _verify(inspection, choose_device(device)) if verify else []
    if checks:
        result["checks"] = [asdict(check) for check in checks]
    rows = [(name, _cell(value)) for name, value in result.items() if name != "checks"]
    rows += [(f"{check.status}: {check.name}", check.detail) for check in checks]
    show_table(f"Checkpoint {ckpt}", rows, result, as_json)
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)


def _is_run(path: str) -> bool:
    from extract.inspect_run import is_run

    return is_run(path)


def _show_run(path: str, verify: bool, as_json: bool) -> None:
    from extract.inspect_run import describe_run
    from extract.store import verify_run

    result = describe_run(path)
    faults = verify_run(path) if verify else []
    if verify:
        result["faults"] = faults
    rows = [(name, _cell(value)) for name, value in result.items() if not isinstance(value, list)]
    for held in result["sites"]:
        told = f"{held['rows']:,} x {held['channels']}, all finite, at most {held['peak']:.3g}"
        rows.append((f"{held['site']}/{held['view']}", told))
    rows += [("faults", "\n".join(faults) or "none: every file is as it was written")] if verify else []
    show_table(f"Run {path}", rows, result, as_json)
    if not as_json:  # below the table, where lines are whole and can be copied
        typer.echo("\n".join(["To open it:", "", *result["open"]]))
    if faults:
        raise typer.Exit(1)


def describe(inspection: Inspection, tokenizer: str | Path | None = None) -> dict[str, Any]:
    """An inspection in plain values: counts, and for what was ignored or is missing every reason with its count."""
    stored, report = inspection.stored, inspection.report
    found = tokenizer or stored.tokenizer
    return {
        "format": stored.format,
        "weights": {"only": "the only ones in the file", "ema": "ema (averaged)", "raw": "raw"}[stored.chosen],
        "model": stored.config.model,
        "parameters": inspection.parameters,
        "sizes": asdict(stored.config),
        "loaded": len(report.loaded),
        "renamed": len(report.renamed),
        "ignored": dict(Counter(report.ignored.values())),
        "missing": dict(Counter(report.missing.values())),
        "tokenizer": str(found) if found else f"none; give {stored.trained_with or 'its own'} with --tokenizer",
        **_origin(stored.info.get("converted")),
    }


def _origin(converted: Any) -> dict[str, str]:
    """Where a converted folder is from, and what its file lacked: there, nothing is missing any more."""
    if not isinstance(converted, dict):
        return {}
    told = [f"{converted.get('file')} ({converted.get('format')}), weights {converted.get('weights')}"]
    return {"converted from": "\n".join(told + list(converted.get("missing", ())))}


def _verify(inspection: Inspection, device: str) -> list[Check]:
    from extract.self_checks import run_self_checks

    return run_self_checks(inspection.model.to(device))


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, dict):
        return str(value)
    counts = value and all(type(count) is int and " " in name for name, count in value.items())
    pairs = (f"{count} x {name}" if counts else f"{name} {count}" for name, count in value.items())
    return ("\n" if counts else ", ").join(pairs) or "none"
