"""``finetune``: from a benchmark to a checkpoint folder, resumable, with the weights that were best on dev."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.utilities import rank_zero_only

from grounding.benchmarks import open_benchmark
from grounding.checkpoint import save_checkpoint
from grounding.config_files import read_json_object
from grounding.errors import BadInput, RunFailed, unknown_choice
from grounding.evaluate import tune
from grounding.finetune.annotations import Annotations
from grounding.finetune.data import make_loader
from grounding.finetune.module import PROCESSES, FinetuneModule
from grounding.finetune.objectives import objective_for
from grounding.finetune.possible import check_monitored, check_task
from grounding.finetune.progress import Progress
from grounding.finetune.reading import Reader
from grounding.finetune.settings import FinetuneSettings
from grounding.finetune.start import starting_model
from grounding.finetune.trainer import DEFAULT_LOGGERS, Machine, as_meant, best_kept, ctrl_c_as_usual, make_trainer
from grounding.folders import check_folder, make_folder

SETTINGS = "settings.json"


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    workers: int = 0,
    loggers: Sequence[str] = DEFAULT_LOGGERS,
    progress: Progress | None = None,
) -> Path:
    """Fine-tune (or go on where an interrupted run stopped) and return the checkpoint folder ``out``.

    ``out`` then holds the checkpoint, ``logs/`` and ``settings.json``. device: ``auto``, ``cpu`` or ``cuda``; devices:
    on each of ``nodes`` machines. workers: processes that prepare batches. loggers: some of csv, tensorboard and wandb.
    progress: called with (done, of how many where that is known, what is being done). A run that goes on has the
    batches and the random numbers of one that was never stopped. Raises BadInput if ``out`` holds a run with other
    settings, or one that is finished, and for whatever is unknown or cannot be read.
    """
    benchmark = open_benchmark(settings.benchmark, settings.root, settings.data_seed, **settings.benchmark_options)
    if settings.train_split not in benchmark.splits:
        raise unknown_choice("train_split", settings.train_split, benchmark.splits)
    machine = Machine(device, devices, nodes, workers, tuple(loggers))
    machine.check_precision(settings.precision)
    last = _state_to_resume(settings, out)
    done = _steps_done(last, machine)
    check_folder(out)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    model_from = starting_model(settings)
    tell = rank_zero_only(progress) if progress is not None else _tell_nobody
    reader = Reader(benchmark, settings.skip_bad, workers, tell)
    annotations = Annotations.learned(reader.read(settings.train_split, settings.limit_train), settings)
    check_task(annotations.examples, settings)
    train, dev = annotations.examples, reader.read("dev", settings.limit_dev)
    model = model_from([example.caption for example in train])
    train_loader, dev_loader = (
        make_loader(
            reader.usable(examples, model.preprocessor), model.preprocessor, settings.batch_size, seed=settings.seed,
            train=examples is train, workers=workers, steps_done=done, accumulate=settings.accumulate,
            losses=settings.losses, processes=machine.processes,
        )
        for examples in (train, dev)
    )  # fmt: skip
    check_monitored(dev, set(reader.dropped_phrases), settings)
    steps = _steps(settings, len(train_loader) // machine.processes)
    module = FinetuneModule(model, objective_for(settings), settings, steps)
    if module.warmup > steps:
        told = f"warmup {module.warmup} is longer than the run of {steps} steps"
        warnings.warn(f"{told}: the learning rate only rises, and ends below {settings.learning_rate}", stacklevel=2)
    make_folder(out)
    (out / SETTINGS).write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")
    best, timer = best_kept(settings, out), Timer()
    with as_meant():
        trainer = make_trainer(settings, steps, out, best, timer, machine, tell, done)
        for logger in trainer.loggers:
            logger.log_hyperparams(asdict(settings))
        with ctrl_c_as_usual():
            trainer.fit(module, train_loader, dev_loader, ckpt_path=last, weights_only=True)
    _finish(settings, out, module, trainer, best, reader, annotations, timer.time_elapsed())
    trainer.strategy.barrier("the checkpoint is written")  # nobody reads it before, or ends those who write it
    return out


def _steps(settings: FinetuneSettings, batches: int) -> int:
    """Optimiser steps of a run whose epochs have so many batches a process."""
    if settings.epochs is None:
        return settings.steps
    return settings.epochs * max(1, batches // settings.accumulate)


def _state_to_resume(settings: FinetuneSettings, out: Path) -> Path | None:
    """The last state of an interrupted run in ``out`` with the same settings, or None for a new or empty folder."""
    if (out / "config.json").exists():
        raise BadInput(f"out {str(out)!r} holds a finished checkpoint; accepted: a new folder, or an interrupted run's")
    path = out / SETTINGS
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise BadInput(f"out {str(out)!r} holds something else than a fine-tuning run; accepted: a new folder")
        return None
    # A setting that is newer than the run was as it is by default.
    found = asdict(FinetuneSettings(settings.model, settings.benchmark)) | read_json_object(path)
    wanted = json.loads(json.dumps(asdict(settings)))
    for name in wanted:
        if wanted[name] != found[name]:
            raise BadInput(
                f"out {str(out)!r} holds a run with {name} {found[name]!r}, not {wanted[name]!r}; "
                "accepted: the same settings, or another folder"
            )
    last = out / "states" / "last.ckpt"
    return last if last.exists() else None


def _steps_done(last: Path | None, machine: Machine) -> int:
    """Steps behind a state. Raises BadInput where other processes would go on with other batches."""
    if last is None:
        return 0
    state = _read_state(last)
    if (before := state.get(PROCESSES, machine.processes)) != machine.processes:
        raise BadInput(
            f"state {str(last)!r} is of {before} processes, not {machine.processes} (devices x nodes), whose "
            "batches are others; accepted: as many, or another folder"
        )
    return state["global_step"]


def _read_state(path: Path) -> dict[str, Any]:
    """A state that was saved in training, on the CPU. Raises BadInput for a file that breaks off or is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        whole = {"global_step", "state_dict"} <= set(state)
    except (OSError, EOFError, RuntimeError, TypeError, LookupError, ValueError, UnpicklingError):
        whole = False
    if not whole:
        raise BadInput(
            f"state {str(path)!r} cannot be read: it breaks off, or is no run's; accepted: a whole one, or none: "
            f"remove {str(path.parent)!r}, and the same command begins again"
        )
    return state


def _tell_nobody(done: int, total: int | None, doing: str) -> None:
    pass


def _finish(
    settings: FinetuneSettings,
    out: Path,
    module: FinetuneModule,
    trainer: lightning.Trainer,
    best: ModelCheckpoint,
    reader: Reader,
    annotations: Annotations,
    seconds: float,
) -> None:
    """Write the checkpoint with the best weights, and a heatmap threshold tuned on a named split.

    Raises RunFailed, in every process, if there are no best weights.
    """
    if not best.best_model_path:
        raise RunFailed(
            f"the run ended at step {trainer.global_step} of {module.steps} without a look at dev: no weights were kept"
        )
    if not trainer.is_global_zero:
        return
    state = _read_state(Path(best.best_model_path))
    module.load_state_dict(state["state_dict"])
    model = module.model.to(trainer.strategy.root_device)
    split = "tune" if "tune" in reader.benchmark.splits else "dev"
    threshold = None
    if model.predicts == "heatmap":
        examples = reader.read(split, settings.limit_dev)
        if any(phrase.regions for example in examples for phrase in example.phrases):
            threshold = tune(
                model,
                examples,
                criterion="iou",
                batch_size=settings.batch_size,
                device=trainer.strategy.root_device,
                progress=lambda done: reader.progress(done, len(examples), f"tuning the threshold on {split}"),
                skip_bad=settings.skip_bad,
            )
    info = {
        "threshold": asdict(threshold) if threshold is not None else None,
        "training": {
            "settings": json.loads(json.dumps(asdict(settings))),
            "annotations": {"phrases": annotations.phrases, "learned": annotations.learned_phrases},
            "steps": trainer.global_step,
            "planned_steps": module.steps,
            "best_step": state["global_step"],
            settings.monitored: float(best.best_model_score) if best.best_model_score is not None else None,
            "seconds": round(seconds),
            "device": _device_name(trainer),
            "torch": torch.__version__,
            "skipped": [{"id": id_, "reason": reason} for id_, reason in reader.skipped.items()],
            "dropped_phrases": [{"example": id_, "phrase": phrase} for id_, phrase in reader.dropped_phrases],
        },
    }
    save_checkpoint(out, model, info)


def _device_name(trainer: lightning.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
