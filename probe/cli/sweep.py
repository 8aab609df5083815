"""``probe sweep``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from grounding.devices import choose_device
from probe.cli.engines import Address
from probe.cli.options import AsJson, parse_list, progress_bar, show

NAME = "sweep"
EPILOG = (
    "Example: probe sweep runs/vilt --question alignment --question localisation --probe linear --control all; from a "
    "file: probe sweep sweep.yaml --engine ray"
)
ENGINES = ("local", "ray")

Run = Annotated[
    list[Path],
    typer.Argument(
        help="Folders of runs made by probe extract, or one .yaml file with the keys runs, questions, probes, "
        "controls, sites, seeds, out, ...; what is given here goes before what it says."
    ),
]
Question = Annotated[
    list[str] | None,
    typer.Option(
        help="alignment, localisation, boxes, aligner-head, queries or outcome; repeat for several (default alignment)."
    ),
]
Probe = Annotated[list[str] | None, typer.Option(help="linear or mlp; repeat for several (default both).")]
Control = Annotated[
    list[str] | None,
    typer.Option(
        help="labels, position-only, random-model (extracts a twin of the run with fresh weights), concatenation, "
        "phrase-only, region-only, majority, all or none; repeat for several (default labels, position-only, "
        "concatenation and region-only). The questions of pairs have all of them, boxes and outcome random-model."
    ),
]
Measure = Annotated[
    list[str] | None,
    typer.Option(help="Comma-separated, besides: description-length, usable-information, learning-curve, frontier."),
]
Sites = Annotated[list[str] | None, typer.Option(help="Comma-separated sites, block.* for a stage; default all.")]
Seeds = Annotated[list[int] | None, typer.Option(help="Seed of splits and probes; repeat for several (default 0).")]
Group = Annotated[
    str | None, typer.Option(help="Never split apart: image, caption, annotation or tangram (default image).")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the tables; default: sweep in the run. One that was begun goes on.")
]
Engine = Annotated[str, typer.Option(help="local: this process; ray: on a cluster (--address, --num-workers).")]
Workers = Annotated[int | None, typer.Option("--num-workers", help="Engine ray: workers; default as many as fit.")]
Cpus = Annotated[
    int | None, typer.Option("--cpus-per-worker", help="Engine ray: cores and threads of each; default 1.")
]


def command(
    run: Run,
    question: Question = None,
    probe: Probe = None,
    control: Control = None,
    measure: Measure = None,
    sites: Sites = None,
    seed: Seeds = None,
    group: Group = None,
    out: Out = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda (default auto).")] = None,
    engine: Engine = "local",
    address: Address = None,
    num_workers: Workers = None,
    cpus_per_worker: Cpus = None,
    as_json: AsJson = False,
) -> None:
    """Layer by layer: what can probes read there? Questions, controls, intervals, one tidy table."""
    from extract import reader
    from probe.sweep import sweep
    from probe.tables import SUMMARY

    given = {"questions": question, "probes": probe, "controls": control, "seeds": seed, "group": group}
    given |= {"sites": parse_list(sites), "device": device}
    given |= {"measures": parse_list(measure)}
    said = _config(run) | {name: value for name, value in given.items() if value is not None}
    runs = [Path(path) for path in said.pop("runs")]
    target = _target(out, said.pop("out", None), runs)
    said["controls"] = _controls(said.get("controls"))
    said["device"] = choose_device(said.get("device", "auto"))
    chosen = _engine(engine, address, num_workers, cpus_per_worker)
    with progress_bar("probing", as_json) as progress:
        table = sweep([reader.Run.open(path) for path in runs], out=target, progress=progress, engine=chosen, **said)
    rows = table.astype(object).where(table.notna(), None).to_dict("records")  # JSON knows no NaN
    result = {"out": str(target), "rows": rows}
    text = (target / SUMMARY).read_text(encoding="utf-8")
    elsewhere = "" if target == runs[0] / "sweep" else f" --sweep {target}"
    show(result, as_json, f"{text}\nTables: {target}\nNext: probe visualize {runs[0]}{elsewhere}")


def _config(paths: list[Path]) -> dict[str, Any]:
    """The runs, and what else a YAML file says. Raises BadInput for such a file beside runs, and for one without."""
    from grounding.errors import BadInput
    from probe.sweep_config import SUFFIXES, read_config

    files = [path for path in paths if path.suffix in SUFFIXES and not path.is_dir()]
    if not files:
        return {"runs": paths}
    if len(paths) > 1:
        raise BadInput(f"{files[0]} beside other arguments; accepted: runs, or one .yaml file that names them")
    said = read_config(files[0])
    if "runs" not in said:
        raise BadInput(f"config {str(files[0])!r} names no runs; accepted: runs: [FOLDER, ...]")
    return said


def _target(out: Path | None, said: str | None, runs: list[Path]) -> Path:
    from grounding.errors import BadInput

    if out is None and said is None and len(runs) > 1:
        raise BadInput(f"{len(runs)} runs need --out, the folder for their tables")
    return out or (Path(said) if said is not None else runs[0] / "sweep")


def _engine(name: str, address: str | None, num_workers: int | None, cpus_per_worker: int | None) -> Any:
    from grounding.errors import BadInput, unknown_choice

    if name not in ENGINES:
        raise unknown_choice("engine", name, ENGINES)
    given = {"address": address, "num_workers": num_workers, "cpus_per_worker": cpus_per_worker}
    options = {option: value for option, value in given.items() if value is not None}
    if name == "local":
        if options:
            raise BadInput(f"--{next(iter(options)).replace('_', '-')} does not go with --engine local")
        return None
    from probe.ray_sweep import RayEngine

    return RayEngine(**options)  # type: ignore[arg-type]


def _controls(names: Sequence[str] | None) -> Sequence[str] | str | None:
    """As ``probe.sweep.sweep`` takes them: names, ``all``, or none of them where ``none`` is said."""
    from grounding.errors import unknown_choice
    from probe.settings import CONTROLS

    if names is None:
        return None
    for name in names:
        if name not in (*CONTROLS, "all", "none"):
            raise unknown_choice("control", name, (*CONTROLS, "all", "none"))
    return "all" if "all" in names else [name for name in names if name != "none"]
