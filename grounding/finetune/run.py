"""``finetune``: from a benchmark to a checkpoint folder, resumable, with the weights that were best on dev."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn

from grounding.benchmarks import open_benchmark
from grounding.checkpoint import save_checkpoint
from grounding.config_files import read_json_object
from grounding.errors import BadInput, unknown_choice
from grounding.evaluate import tune
from grounding.finetune.data import make_loader
from grounding.finetune.module import LOG_EVERY, FinetuneModule
from grounding.finetune.objectives import objective_for
from grounding.finetune.progress import Progress, StepProgress
from grounding.finetune.reading import Reader
from grounding.finetune.settings import FinetuneSettings
from grounding.finetune.start import starting_model

DEVICES = ("auto", "cpu", "cuda")
SETTINGS = "settings.json"
CHATTER = (  # of Lightning, about what is meant to be so
    "does not have many workers",
    "You are trying to.*log",
    "resuming from a checkpoint that ended before the epoch",
    "exists and is not empty",
    "smaller than the logging interval",
    "isinstance.treespec, LeafSpec",
)
_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    workers: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Fine-tune (or go on where an interrupted run stopped) and return the checkpoint folder ``out``.

    ``out`` then holds the checkpoint, ``logs/`` (CSV and TensorBoard) and ``settings.json``. device: ``auto``, ``cpu``
    or ``cuda``. workers: processes that prepare batches. progress: called with (done, of how many where that is known,
    what is being done). Raises BadInput if ``out`` holds a run with other settings, or one that is finished, and for
    whatever is unknown or cannot be read.
    """
    benchmark = open_benchmark(settings.benchmark, settings.root, settings.data_seed, **settings.benchmark_options)
    if settings.train_split not in benchmark.splits:
        raise unknown_choice("train_split", settings.train_split, benchmark.splits)
    _check_machine(device, devices, workers)
    last = _state_to_resume(settings, out)
    started = time.monotonic()
    torch.set_float32_matmul_precision("high")  # tensor cores on GPU, nothing else changes
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    model_from = starting_model(settings)
    tell = rank_zero_only(progress) if progress is not None else _tell_nobody
    reader = Reader(benchmark, settings.skip_bad, workers, tell)
    train = reader.read(settings.train_split, settings.limit_train)
    dev = reader.read("dev", settings.limit_dev)
    if settings.grounding and not any(phrase.regions for example in train for phrase in example.phrases):
        raise BadInput(f"split {settings.train_split!r} has no annotated regions, but the grounding loss is on")
    if not settings.grounding:  # a run without annotations never holds one
        train = [replace(example, phrases=()) for example in train]
    model = model_from([example.caption for example in train])
    module = FinetuneModule(
        model,
        objective_for(settings.model, settings.task, settings.grounding, settings.losses),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup=settings.warmup,
    )
    done = _steps_done(last)
    train_loader, dev_loader = (
        make_loader(
            reader.encode(examples, model.preprocessor), model.preprocessor, settings.batch_size, seed=settings.seed,
            train=examples is train, workers=workers, steps_done=done, losses=settings.losses,
        )
        for examples in (train, dev)
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / SETTINGS).write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")
    best = ModelCheckpoint(out / "states", "best", monitor=settings.monitor, mode="max", enable_version_counter=False)
    trainer = _trainer(settings, out, best, device, devices, tell, done)
    with _ctrl_c_as_usual():
        trainer.fit(module, train_loader, dev_loader, ckpt_path=last, weights_only=True)
    _finish(settings, out, module, trainer, best, reader, time.monotonic() - started)
    return out


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


def _steps_done(last: Path | None) -> int:
    return 0 if last is None else torch.load(last, map_location="cpu", weights_only=True, mmap=True)["global_step"]


def _tell_nobody(done: int, total: int | None, doing: str) -> None:
    pass


def _check_machine(device: str, devices: int, workers: int) -> None:
    if device not in DEVICES:
        raise unknown_choice("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device 'cuda' is not available here; accepted: auto, cpu")
    if devices < 1:
        raise BadInput(f"devices {devices} is too small; accepted: 1 or more")
    if workers < 0:
        raise BadInput(f"workers {workers} is too small; accepted: 0 or more")


def _trainer(
    settings: FinetuneSettings,
    out: Path,
    best: ModelCheckpoint,
    device: str,
    devices: int,
    progress: Progress,
    done: int,
) -> lightning.Trainer:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for chatter in CHATTER:
        warnings.filterwarnings("ignore", message=f".*{chatter}")
    # Both are saved after each validation, the best one first: a resumed run knows of it.
    last = ModelCheckpoint(out / "states", "last", enable_version_counter=False)
    callbacks: list[Callback] = [best, last, StepProgress(progress)]
    if settings.ema_decay:
        average = get_ema_multi_avg_fn(settings.ema_decay)
        callbacks.insert(0, WeightAveraging(use_buffers=False, multi_avg_fn=average))
    return lightning.Trainer(
        accelerator=device,
        devices=devices,
        # Without the grounding loss MDETR's boxes, and ViLT's pooler always, have no gradient.
        strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
        precision=_LIGHTNING_PRECISION[settings.precision],  # type: ignore[arg-type]
        max_steps=settings.steps,
        val_check_interval=min(settings.evaluate_every, settings.steps),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        log_every_n_steps=LOG_EVERY,
        callbacks=callbacks,
        # A CSV logger deletes the file it finds: a resumed run writes to a folder of its own.
        logger=[
            CSVLogger(out, "logs", version=f"from-step-{done}" if done else ""),
            TensorBoardLogger(str(out), "logs", version=""),
        ],
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def _ctrl_c_as_usual() -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning, having shut down, exits with 1 and leaves Ctrl-C dead."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def _finish(
    settings: FinetuneSettings,
    out: Path,
    module: FinetuneModule,
    trainer: lightning.Trainer,
    best: ModelCheckpoint,
    reader: Reader,
    seconds: float,
) -> None:
    """Write the checkpoint with the best weights, and a heatmap threshold tuned on a named split."""
    if not trainer.is_global_zero:
        return
    state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
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
            "best_step": state["global_step"],
            settings.monitor: float(best.best_model_score) if best.best_model_score is not None else None,
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
