"""The folder of a study: what it says of the study, and how far its cells are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from grounding.config_files import read_json_object
from grounding.errors import BadInput
from grounding.folders import make_folder
from probe.study.config import Cell, StudyConfig

CONFIG, CELLS, INTERVENTIONS = "study.json", "cells", "interventions"
# What a cell's folder holds of what was found.
CHECKPOINT, SUMMARY, EXAMPLES = "ckpt/config.json", "evaluation/summary.json", "evaluation/examples.csv"
SWEEP, JOINED, EFFECTS = "sweep/sweep.csv", "sweep/joined.csv", f"{INTERVENTIONS}/interventions.csv"
# Steps, and what of a cell each is behind.
STEPS = {"evaluate": (SUMMARY,), "extract": ("run", SWEEP), "sweep": (SWEEP,), "intervene": (EFFECTS,)}


def open_folder(out: Path, config: StudyConfig) -> None:
    """Write the study down in its folder, whose cells keep their fractions and seeds.

    Raises BadInput as ``verify_folder`` does.
    """
    stored = verify_folder(out, config)
    make_folder(out)
    (out / CONFIG).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def verify_folder(out: Path, config: StudyConfig) -> dict[str, Any]:
    """What the folder of a study will say of it: with fractions and seeds of cells that were evaluated before, too.

    Raises BadInput for a folder of something else, and where a cell that was begun was made with other settings, or
    went through a step with other options, naming what differs with both values.
    """
    path = out / CONFIG
    wanted = json.loads(json.dumps({**config.to_json(), "resolved": config.resolved()}))
    if path.exists():
        found = read_json_object(path)
        begun = [cell for cell in read_folder(out).cells() if (out / CELLS / cell.name).is_dir()]
        _verify(out, wanted, found, begun)
        kept = [cell for cell in begun if is_evaluated(out / CELLS / cell.name)]
        wanted["fractions"] = list(dict.fromkeys([*wanted["fractions"], *(cell.fraction for cell in kept)]))
        wanted["seeds"] = list(dict.fromkeys([*wanted["seeds"], *(cell.seed for cell in kept)]))
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"out {str(out)!r} holds something else than a study; accepted: a new folder, or a study's")
    return wanted


def _verify(out: Path, wanted: dict[str, Any], found: dict[str, Any], begun: Sequence[Cell]) -> None:
    for step, behind in STEPS.items():
        made = ((out / CELLS / cell.name / file).exists() for cell in begun for file in behind)
        if wanted[step] != found.get(step) and any(made):
            _refuse(out, step, found.get(step), wanted[step])
    for cells in dict.fromkeys(cell.start for cell in begun):
        before, now = (study.get("resolved", {}).get(cells) for study in (found, wanted))
        if before is None or now is None:
            _refuse(out, "models", _names(found), _names(wanted))
        for name in now:  # recipes read: what one in a file says now
            if now[name] != before.get(name):
                _refuse(out, f"{name} of {cells}", before.get(name), now[name])


def _names(study: dict[str, Any]) -> list[str]:
    """The models of a study with what each starts from."""
    return sorted(study.get("resolved", {}))


def _refuse(out: Path, name: str, found: Any, wanted: Any) -> NoReturn:
    raise BadInput(
        f"out {str(out)!r} holds a study with {name} {found!r}, not {wanted!r}; "
        "accepted: what its cells were made with (more of them may be added), or another folder"
    )


def read_folder(out: Path) -> StudyConfig:
    """The study that a folder is of. Raises BadInput where it is of none."""
    if not (out / CONFIG).is_file():
        raise BadInput(f"study {str(out)!r} holds no {CONFIG}; accepted: a folder that probe study wrote")
    stored = read_json_object(out / CONFIG)
    stored.pop("resolved", None)
    return StudyConfig(**stored)


def is_evaluated(folder: Path) -> bool:
    """Has the cell in that folder been evaluated?"""
    return (folder / "evaluation").is_dir()


def is_swept(folder: Path) -> bool:
    """Have the probes of the cell in that folder been fitted?"""
    return (folder / "sweep").is_dir()


def is_whole(out: Path, cell: Cell, config: StudyConfig) -> bool:
    """Has the cell been through every step?"""
    folder = out / CELLS / cell.name
    probed = config.extract is None or is_swept(folder)
    return is_evaluated(folder) and probed and (config.intervene is None or (folder / INTERVENTIONS).is_dir())
