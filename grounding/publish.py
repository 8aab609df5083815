"""Publishing on the Hugging Face hub: checkpoints with a card written from the run, and tables of results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from grounding.cards import model_card, results_card
from grounding.checkpoint import CONFIG, TOKENIZER, WEIGHTS, Checkpoint, load_checkpoint, open_stored
from grounding.config_files import read_json_object
from grounding.errors import BadInput, RunFailed
from grounding.evaluation_files import PLACES, SUMMARY
from grounding.folders import check_folder, make_folder, read_note
from grounding.released.hub import download
from grounding.values import without_folders

CARD, EVALUATION, TOLD = "README.md", "evaluation", "summary.md"
STUDY = "study.json"  # what probe study ran, beside its tables
OWN = "checkpoint folder"  # the format that ``save_checkpoint`` writes
# A request that fails is the first base of an answer that says no; the client behind it changes with the hub's version.
REFUSALS: tuple[type[Exception], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Pushed:
    """What was published. name: ``owner/name``. place: its address, or the folder of a dry run. files: sorted."""

    name: str
    kind: str
    place: str
    files: tuple[str, ...]


def push_checkpoint(
    ckpt: str | Path,
    name: str,
    *,
    private: bool = False,
    dry_run: Path | str | None = None,
    evaluation: Path | str | None = None,
    license: str | None = None,
) -> Pushed:
    """Upload one of our checkpoint folders, bytes unchanged, with its card, as the model repository ``name``.

    dry_run: a new folder to write everything to instead, without a network. evaluation: folder of an evaluation of this
    checkpoint (``probe evaluate --out``), whose figures and tables go along. license: an identifier of the hub's, such
    as ``mit``. Raises BadInput for a checkpoint of another format, a name that is not owner/name, an evaluation of
    another checkpoint, and without a token; RunFailed where the hub cannot be reached or refuses.
    """
    _check(name, dry_run)
    if (found := open_stored(ckpt).format) != OWN:
        raise BadInput(f"checkpoint {str(ckpt)!r} is a {found}; accepted: a folder of probe finetune or probe convert")
    checkpoint = load_checkpoint(ckpt)
    summary = None if evaluation is None else _evaluation_of(Path(evaluation), checkpoint)
    with TemporaryDirectory() as made:
        folder = Path(made)
        for file in (CONFIG, WEIGHTS, TOKENIZER):
            shutil.copyfile(checkpoint.path / file, folder / file)
        told = ""
        if evaluation is not None:
            _copy_tables(Path(evaluation), make_folder(folder / EVALUATION))
            told = _told(Path(evaluation))
        card = model_card(name, checkpoint, summary, told, license)
        (folder / CARD).write_text(card, encoding="utf-8")
        return _publish(folder, name, "model", private, dry_run)


def push_results(
    results: Path | str,
    name: str,
    *,
    private: bool = False,
    dry_run: Path | str | None = None,
    license: str | None = None,
) -> Pushed:
    """Upload the tables in a folder, of ``probe evaluate --out`` or a study, as the dataset repository ``name``.

    ``datasets.load_dataset(name, TABLE)`` reads each of them. A study's ``study.json`` goes along. For the rest see
    ``push_checkpoint``. Raises BadInput for a folder without tables too.
    """
    _check(name, dry_run)
    source = Path(results)
    if not source.is_dir():
        raise BadInput(
            f"results {str(results)!r} is not a folder; accepted: one of probe evaluate --out or probe study"
        )
    about = _named(read_note(source / SUMMARY, "about", "an evaluation") or {})
    with TemporaryDirectory() as made:
        files = _copy_tables(source, Path(made))
        study = _copy_study(source, Path(made))
        card = results_card(name, files, about, _told(source), license, study)
        (Path(made) / CARD).write_text(card, encoding="utf-8")
        return _publish(Path(made), name, "dataset", private, dry_run)


def from_pretrained(
    name: str | Path, revision: str | None = None, device: torch.device | str = "cpu", **loading: Any
) -> Checkpoint:
    """A published checkpoint by ``owner/name``, or one in a folder, in eval mode.

    revision: branch, tag or commit of the repository. loading: as ``load_checkpoint`` takes it. Raises BadInput in one
    line: no such name, no network and nothing in the cache, no weights.
    """
    if revision is not None and Path(name).exists():
        raise BadInput(f"revision {revision!r} of {str(name)!r}, which is here; accepted: with owner/name on the hub")
    return load_checkpoint(name if revision is None else download(str(name), revision), device, **loading)


def _check(name: str, dry_run: Path | str | None) -> None:
    """BadInput for a name that the hub would not take, a folder that is taken, and an upload without a token."""
    try:
        validate_repo_id(name)
        owned = "/" in name
    except HFValidationError:
        owned = False
    if not owned:
        raise BadInput(f"name {name!r} is not owner/name; accepted: letters, digits, '-', '_' and '.' round one '/'")
    check_folder(dry_run, "dry-run")
    if dry_run is None and get_token() is None:
        raise BadInput("there is no token of the Hugging Face hub; accepted: `hf auth login`, HF_TOKEN, or --dry-run")
    if dry_run is not None and Path(dry_run).exists() and any(Path(dry_run).iterdir()):
        raise BadInput(f"dry-run {str(dry_run)!r} exists; accepted: a new folder, or an empty one")


def _evaluation_of(folder: Path, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The summary of an evaluation, which must be of this checkpoint."""
    there = read_note(folder / SUMMARY, "about", "an evaluation")
    if there is None:
        raise BadInput(f"evaluation {str(folder)!r} holds no {SUMMARY}; accepted: a folder of probe evaluate --out")
    if there.get("content") != checkpoint.content:
        of = "predictions" if there.get("predictions") else "another checkpoint"
        raise BadInput(
            f"evaluation {str(folder)!r} is of {of}, content {there.get('content')}, not of {checkpoint.path.name!r}, "
            f"content {checkpoint.content}; accepted: what probe evaluate --ckpt {checkpoint.path} --out wrote"
        )
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def _copy_tables(source: Path, target: Path) -> list[str]:
    """Copy each table once, as Parquet where there is one, and the summary; names of the tables."""
    found = {path.stem: path.name for kind in ("csv", "parquet") for path in sorted(source.glob(f"*.{kind}"))}
    if not found:
        raise BadInput(
            f"results {str(source)!r} holds no tables; accepted: a folder of probe evaluate --out or probe study"
        )
    for file in found.values():
        shutil.copyfile(source / file, target / file)
    if about := read_note(source / SUMMARY, "about", "an evaluation"):
        summary = json.loads((source / SUMMARY).read_text(encoding="utf-8")) | {"about": _named(about)}
        (target / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if told := _told(source):
        (target / TOLD).write_text(told, encoding="utf-8")
    return list(found.values())


def _copy_study(source: Path, target: Path) -> Mapping[str, Any]:
    """Copy what a study ran, if the results are of one, with names where it has folders of whoever ran it."""
    if not (source / STUDY).is_file():
        return {}
    study: Mapping[str, Any] = without_folders(read_json_object(source / STUDY))
    (target / STUDY).write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
    return study


def _named(about: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation is of, with names where it has places: folders are whoever evaluated's own business."""
    return {key: Path(value).name if key in PLACES and value else value for key, value in about.items()}


def _told(folder: Path) -> str:
    """The summary in words, in which a checkpoint goes by its name."""
    if not (folder / TOLD).is_file():
        return ""
    told = (folder / TOLD).read_text(encoding="utf-8")
    about = read_note(folder / SUMMARY, "about", "an evaluation") or {}
    for place in filter(None, map(about.get, PLACES)):
        told = told.replace(str(place), Path(place).name)
    return told


def _publish(folder: Path, name: str, kind: str, private: bool, dry_run: Path | str | None) -> Pushed:
    """Upload a folder that is whole, or put it where a dry run wants it."""
    files = tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
    if dry_run is not None:
        shutil.copytree(folder, make_folder(dry_run, "dry-run"), dirs_exist_ok=True)
        return Pushed(name, kind, str(dry_run), files)
    api = HfApi()
    try:
        place = api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type=kind, folder_path=folder, commit_message="Written by probe push")
    except REFUSALS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunFailed(
            f"{name}: the Hugging Face hub did not take it ({reason}); --dry-run FOLDER needs none"
        ) from None
    return Pushed(name, kind, str(place), files)
