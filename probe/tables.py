"""The files of a sweep: its tidy table as CSV and JSON, what was found of each item, and a page of words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from grounding.errors import BadInput
from grounding.folders import check_folder
from probe.measures.asked import DETAILS
from probe.measures.words import measure_lines
from probe.settings import MEASURES, SweepSettings
from probe.summary import few_images, summarise

if TYPE_CHECKING:
    from extract.reader import Run

SUMMARY, TABLE, DESCRIPTION = "summary.md", "sweep.csv", "sweep.json"
ITEMS, JOINED = "phrases.parquet", "joined.csv"


def write_tables(
    table: pd.DataFrame,
    items: pd.DataFrame,
    joined: pd.DataFrame,
    measures: Mapping[str, pd.DataFrame],
    description: dict[str, Any],
    out: Path,
) -> None:
    """Write ``sweep.csv``, ``sweep.json`` (what it rests on, and the rows), ``phrases.parquet`` (what was found of each
    item), ``joined.csv`` (``probe.joined``), a CSV file of each table of the measures, and ``summary.md``."""
    table.to_csv(out / TABLE, index=False)
    rows = json.loads(table.to_json(orient="records", double_precision=6))
    (out / DESCRIPTION).write_text(json.dumps(description | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    items.to_parquet(out / ITEMS, index=False)
    joined.to_csv(out / JOINED, index=False)
    for name, measured in measures.items():
        measured.to_csv(out / f"{name}.csv", index=False)
    words = summarise(table, joined, description) + "\n".join(measure_lines(measures, few_images(description)))
    (out / SUMMARY).write_text(words, encoding="utf-8")


def read_sweep(folder: Path, run: Run, required: bool = True) -> pd.DataFrame | None:
    """The rows of ``run`` in the tidy table of a sweep. Without one: BadInput, or None where it is not ``required``.

    Raises BadInput for a sweep of other runs, whose curves would be taken for this one's.
    """
    if not required and not (folder / TABLE).is_file():
        return None
    for name in (TABLE, DESCRIPTION):
        if not (folder / name).is_file():
            raise BadInput(f"sweep {str(folder)!r} holds no {name}; accepted: a folder that probe sweep wrote")
    return _of_run(pd.read_csv(folder / TABLE), folder, run)


def read_settings(folder: Path, run: Run) -> SweepSettings:
    """The settings that a sweep of ``run`` was made with, on the CPU; the defaults where there is no sweep.

    Raises BadInput as ``read_sweep`` does.
    """
    if read_sweep(folder, run, required=False) is None:
        return SweepSettings()
    said = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["settings"]
    held: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    return SweepSettings(**{**held, "device": "cpu"})


def read_items(folder: Path, run: Run) -> pd.DataFrame | None:
    """What the probes of a sweep found of each phrase of ``run``; None for a sweep that has no such table.

    Raises BadInput as ``read_sweep`` does.
    """
    if not (folder / ITEMS).is_file():
        return None
    columns = ["run", "question", "probe", "site", "seed", "phrase", "correct", "iou"]
    return _of_run(pd.read_parquet(folder / ITEMS, columns=columns), folder, run)


def read_measures(folder: Path, run: Run) -> dict[str, pd.DataFrame]:
    """The rows of ``run`` in each table of a sweep's measures, by file name; none where there is no sweep.

    Raises BadInput as ``read_sweep`` does.
    """
    names = [*MEASURES, *(f"{measure}-{detail}" for measure, detail in DETAILS.items())]
    paths = {name: folder / f"{name}.csv" for name in names}
    if not (folder / DESCRIPTION).is_file():
        return {}
    return {name: _of_run(pd.read_csv(path), folder, run) for name, path in paths.items() if path.is_file()}


def _of_run(table: pd.DataFrame, folder: Path, run: Run) -> pd.DataFrame:
    """The rows of ``run``. Its identity leaves out sites and views: of several runs that share it, the one named as its
    folder is meant.
    """
    swept, own, folder_name = _swept(folder), run.manifest["identity_hash"], Path(run.path).resolve().name
    names = [name for identity, name in swept if identity == own]
    if not names:
        there = ", ".join(identity[:12] for identity, _ in swept)
        raise BadInput(f"sweep {str(folder)!r} is of run {there}; accepted: a sweep of this run, {own[:12]}")
    if len(names) > 1 and folder_name not in names:
        raise BadInput(
            f"sweep {str(folder)!r} is of several runs of this identity, {', '.join(names)}, and none is named as the "
            f"folder of this one, {folder_name!r}; accepted: a run in a folder of one of these names"
        )
    name = folder_name if folder_name in names else names[0]
    return table[table["run"] == name].reset_index(drop=True)


def check_out(out: Path, runs: Iterable[Run]) -> None:
    """BadInput where ``out`` cannot be a folder, or holds the sweep of other runs, which would be lost."""
    check_folder(out)
    own = [run.manifest["identity_hash"] for run in runs]
    if (out / DESCRIPTION).is_file() and (swept := [identity for identity, _ in _swept(out)]) != own:
        there, here = (", ".join(identity[:12] for identity in identities) for identities in (swept, own))
        raise BadInput(
            f"out {str(out)!r} holds a sweep of another run, {there}, not of this one, {here}; accepted: another folder"
        )


def _swept(folder: Path) -> list[tuple[str, str]]:
    """Identity and name of each run whose sweep is in ``folder``. Raises BadInput where its description is broken."""
    path = folder / DESCRIPTION
    try:
        return [(run["identity_hash"], run["name"]) for run in json.loads(path.read_text(encoding="utf-8"))["runs"]]
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path} does not describe a sweep; accepted: a file that probe sweep wrote") from None
