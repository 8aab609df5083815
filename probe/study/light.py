"""A study without weights and activations: what its tables are made of, to keep, to share, and to go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd

from grounding.config_files import read_json_object
from grounding.errors import BadInput
from grounding.values import without_folders
from probe.study.config import Cell, StudyConfig
from probe.study.folder import (
    CELLS,
    CHECKPOINT,
    EFFECTS,
    EXAMPLES,
    JOINED,
    SUMMARY,
    SWEEP,
    is_whole,
    open_folder,
    verify_folder,
)

# Of the examples; the rest can be evaluated again.
COLUMNS = ["id", "group_image", "has_task", "phrases", "score", "correct", "mean_iou"]


def check_light(config: StudyConfig, study: Path | str, out: Path | str) -> None:
    """Raise BadInput where ``out`` is neither free nor a copy of the study, or is the study itself."""
    if Path(out).resolve() == Path(study).resolve():
        raise BadInput(f"light copy {str(out)!r} is the study itself; accepted: another folder")
    verify_folder(Path(out), config)


def copy_light(config: StudyConfig, study: Path | str, out: Path | str) -> list[Cell]:
    """Copy the small files of a study's whole cells to ``out``, a new folder or an earlier copy; returns these cells.

    Of folders of whoever ran it, cells name the last part alone. ``collect`` gives of the copy what it gives of the
    study, and ``run_study`` goes on with it: cells that are there count as done. Cells that only the copy has stay.
    Raises BadInput as ``check_light`` does.
    """
    check_light(config, study, out)
    open_folder(Path(out), config)
    cells = [cell for cell in config.cells() if is_whole(Path(study), cell, config)]
    for cell in cells:
        source, target = (Path(place) / CELLS / cell.name for place in (study, out))
        there = [name for name in (SWEEP, JOINED, EFFECTS) if (source / name).is_file()]
        for name in (CHECKPOINT, SUMMARY, *there):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
        for name in there:
            shutil.copyfile(source / name, target / name)
        for name in (CHECKPOINT, SUMMARY):
            note = without_folders(read_json_object(source / name))
            (target / name).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        examples = pd.read_csv(source / EXAMPLES)
        examples[[name for name in COLUMNS if name in examples]].to_csv(target / EXAMPLES, index=False)
    return cells
