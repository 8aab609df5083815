"""``finetune``: from a benchmark to a checkpoint folder, resumable, with the weights that were best on dev."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.optim.swa_utils import get_ema_multi_avg_fn

from grounding.benchmarks import Benchmark, open_benchmark
from grounding.checkpoint import config_from_json, load_checkpoint, read_json_object, save_checkpoint
from grounding.errors import BadInput, unknown_choice
from grounding.evaluate import tune
from grounding.examples import Example
from grounding.finetune.data import encode_all, make_loader
from grounding.finetune.module import LOG_EVERY, FinetuneModule
from grounding.finetune.objectives import objective_for
from grounding.models import GroundingModel, build_model, model_config
from grounding.models.text import load_tokenizer, train_tokenizer
from grounding.models.vilt_aligner import ViltAligner

PRECISIONS = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")
SETTINGS = "settings.json"
POSITION_GRID = "position_grid"  # the one field of a configuration that may differ from the checkpoint's
CHATTER = (  # of Lightning, about what is meant to be so
    "does not have many workers",
    "You are trying to.*log",
    "resuming from a checkpoint that ended before the epoch",
    "exists and is not empty",
    "smaller than the logging interval",
    "isinstance.treespec, LeafSpec",
)
_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class FinetuneSettings:
    """Everything that decides what a run learns; a resumed run must have the same.

    task, grounding: which losses are on. init: checkpoint to start from (its sizes and tokenizer are kept).
    config: fields of the model's configuration that differ from the named size; with init, ``position_grid`` alone.
    train_split: ``pretrain`` for grounding pre-training on the miniature. evaluate_every: steps between validations,
    at which the best is kept by ``monitor`` (accuracy of the task, or pointing: share of phrases put inside one of
    their boxes).
    """

    model: str
    benchmark: str
    root: str | None = None
    benchmark_options: Mapping[str, Any] = field(default_factory=dict)
    train_split: str = "train"
    size: str = "miniature"
    config: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    tokenizer: str | None = None
    task: bool = True
    grounding: bool = True
    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: int = 200
    ema_decay: float = 0.998
    evaluate_every: int = 500
    limit_train: int | None = None
    limit_dev: int | None = 500
    precision: str = "fp32"
    seed: int = 0
    data_seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("evaluate_every", 1), ("warmup", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise BadInput(f"{name} {getattr(self, name)} is too small; accepted: {least} or more")
        fixed = [name for name in self.config if name != POSITION_GRID]
        if self.init is not None and fixed:
            given = ", ".join(fixed)
            raise BadInput(f"config {given}: init {self.init!r} brings its own; accepted: {POSITION_GRID} or none")
        if not self.task and not self.grounding:
            raise BadInput("task and grounding are both off: nothing to learn; accepted: one of them or both on")
        if self.learning_rate <= 0:
            raise BadInput(f"learning_rate {self.learning_rate} is not above 0")
        if not 0 <= self.ema_decay < 1:
            raise BadInput(f"ema_decay {self.ema_decay} is outside 0..1")
        if self.precision not in PRECISIONS:
            raise unknown_choice("precision", self.precision, PRECISIONS)

    @property
    def monitor(self) -> str:
        """The figure of dev by which the best weights are chosen."""
        return "dev/accuracy" if self.task else "dev/pointing"


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    workers: int = 0,
    progress: bool = True,
) -> Path:
    """Fine-tune (or go on where an interrupted run stopped) and return the checkpoint folder ``out``.

    ``out`` then holds the checkpoint, ``logs/`` (CSV and TensorBoard) and ``settings.json``. device: ``auto``, ``cpu``
    or ``cuda``. Raises BadInput if ``out`` holds a run with other settings, or one that is finished.
    """
    benchmark = open_benchmark(settings.benchmark, settings.root, settings.data_seed, **settings.benchmark_options)
    if settings.train_split not in benchmark.splits:
        raise unknown_choice("train_split", settings.train_split, benchmark.splits)
    _check_device(device, devices)
    last = _state_to_resume(settings, out)
    started = time.monotonic()
    torch.set_float32_matmul_precision("high")  # tensor cores on GPU, nothing else changes
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    train = benchmark.load(settings.train_split, limit=settings.limit_train)
    dev = benchmark.load("dev", limit=settings.limit_dev)
    if settings.grounding and not any(phrase.regions for example in train for phrase in example.phrases):
        raise BadInput(f"split {settings.train_split!r} has no annotated regions, but the grounding loss is on")
    if not settings.grounding:  # a run without annotations never holds one
        train = [replace(example, phrases=()) for example in train]
    model = _build(settings, train)
    module = FinetuneModule(
        model,
        objective_for(settings.model, settings.task, settings.grounding),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup=settings.warmup,
    )
    done = _steps_done(last)
    train_loader, dev_loader = (
        make_loader(
            encode_all(examples, model.preprocessor, workers),
            model.preprocessor,
            settings.batch_size,
            seed=settings.seed,
            train=examples is train,
            workers=workers,
            steps_done=done,
        )
        for examples in (train, dev)
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / SETTINGS).write_text(json.dumps(asdict(settings), indent=1) + "\n", encoding="utf-8")
    best = ModelCheckpoint(out / "states", "best", monitor=settings.monitor, mode="max", enable_version_counter=False)
    trainer = _trainer(settings, out, best, device, devices, progress, done)
    with _ctrl_c_as_usual():
        trainer.fit(module, train_loader, dev_loader, ckpt_path=last, weights_only=True)
    _finish(settings, out, module, trainer, best, benchmark, time.monotonic() - started)
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
    wanted, found = json.loads(json.dumps(asdict(settings))), read_json_object(path)
    for name in wanted:
        if wanted[name] != found.get(name):
            raise BadInput(
                f"out {str(out)!r} holds a run with {name} {found.get(name)!r}, not {wanted[name]!r}; "
                "accepted: the same settings, or another folder"
            )
    last = out / "states" / "last.ckpt"
    return last if last.exists() else None


def _steps_done(last: Path | None) -> int:
    return 0 if last is None else torch.load(last, map_location="cpu", weights_only=True, mmap=True)["global_step"]


def _check_device(device: str, devices: int) -> None:
    if device not in DEVICES:
        raise unknown_choice("device", device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device 'cuda' is not available here; accepted: auto, cpu")
    if devices < 1:
        raise BadInput(f"devices {devices} is too small; accepted: 1 or more")


def _build(settings: FinetuneSettings, train: Sequence[Example]) -> GroundingModel:
    if settings.init is not None:
        checkpoint = load_checkpoint(settings.init, model=settings.model, tokenizer=settings.tokenizer)
        model = checkpoint.model
        if settings.task and _never_learned_the_task(checkpoint.info):
            model.begin_task()
        if settings.config:
            model = _regrid(model, settings.config)
        return model.train()
    base = asdict(model_config(settings.model, settings.size))
    config: Any = config_from_json(settings.model, {**base, **settings.config}, "config")
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer, config.max_text)
    else:
        tokenizer = train_tokenizer([example.caption for example in train], config.max_text)
    fitted = {"vocabulary": max(tokenizer.vocabulary_size, config.vocabulary if settings.tokenizer else 0)}
    if "pad_id" in base:
        fitted["pad_id"] = tokenizer.pad_id
    return build_model(replace(config, **fitted), tokenizer)


def _never_learned_the_task(info: Mapping[str, Any]) -> bool:
    """Whether a checkpoint says of itself that it was trained on grounding alone."""
    return info.get("training", {}).get("settings", {}).get("task") is False


def _regrid(model: GroundingModel, config: Mapping[str, Any]) -> GroundingModel:
    """The model with the position table that the configuration asks for."""
    wanted: Any = config_from_json(model.config.model, {**asdict(model.config), **config}, "config")
    assert isinstance(model, ViltAligner)  # no other configuration has such a field
    return model.with_position_grid(*wanted.position_grid)


def _trainer(
    settings: FinetuneSettings, out: Path, best: ModelCheckpoint, device: str, devices: int, progress: bool, done: int
) -> lightning.Trainer:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for chatter in CHATTER:
        warnings.filterwarnings("ignore", message=f".*{chatter}")
    # Both are saved after each validation, the best one first: a resumed run knows of it.
    last = ModelCheckpoint(out / "states", "last", enable_version_counter=False)
    callbacks: list[Callback] = [best, last]
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
        enable_progress_bar=progress,
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
    benchmark: Benchmark,
    seconds: float,
) -> None:
    """Write the checkpoint with the best weights, and a heatmap threshold tuned on a named split."""
    if not trainer.is_global_zero:
        return
    state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["state_dict"])
    model = module.model.to(trainer.strategy.root_device)
    split = "tune" if "tune" in benchmark.splits else "dev"
    threshold = None
    if model.predicts == "heatmap":
        examples = benchmark.load(split, limit=settings.limit_dev)
        if any(phrase.regions for example in examples for phrase in example.phrases):
            threshold = tune(
                model, examples, criterion="iou", batch_size=settings.batch_size, device=trainer.strategy.root_device
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
        },
    }
    save_checkpoint(out, model, info)


def _device_name(trainer: lightning.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
