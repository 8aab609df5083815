"""Lightning's trainer as runs need it: what is kept, averaged and logged, and when it ends."""

from __future__ import annotations

import logging
import signal
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn

from grounding.errors import BadInput, unknown_choice
from grounding.finetune.module import LOG_EVERY
from grounding.finetune.progress import Progress, StepProgress
from grounding.finetune.settings import FinetuneSettings
from grounding.folders import name_of

DEVICES = ("auto", "cpu", "cuda")
LOGGERS = ("csv", "tensorboard", "wandb")
DEFAULT_LOGGERS = LOGGERS[:2]
WANDB_ID = "wandb-id"
CHATTER = (  # of Lightning, about what is meant to be so
    "does not have many workers",
    "You are trying to.*log",
    "resuming from a checkpoint that ended before the epoch",
    "exists and is not empty",
    "smaller than the logging interval",
    "isinstance.treespec, LeafSpec",
    ".weights_only. was not set",
)
_LIGHTNING_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Machine:
    """What a run runs on and where it tells of itself: nothing that decides what is learned."""

    device: str
    devices: int
    nodes: int
    workers: int
    loggers: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise unknown_choice("device", self.device, DEVICES)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("device 'cuda' is not available here; accepted: auto, cpu")
        for name, least in (("devices", 1), ("nodes", 1), ("workers", 0)):
            if (value := getattr(self, name)) < least:
                raise BadInput(f"{name} {value} is too small; accepted: {least} or more")
        for name in self.loggers:
            if name not in LOGGERS:
                raise unknown_choice("logger", name, LOGGERS)
        if "wandb" in self.loggers and find_spec("wandb") is None:
            raise BadInput("logger 'wandb' needs pip install wandb")

    def check_precision(self, precision: str) -> None:
        """Raise BadInput for fp16 on a CPU, where Lightning would train in bf16 instead."""
        found = torch.cuda.is_available() or torch.backends.mps.is_available()
        if precision == "fp16" and (self.device == "cpu" or not found):
            raise BadInput(f"precision 'fp16' needs a GPU, but device is {self.device!r} here; accepted: fp32, bf16")

    @property
    def processes(self) -> int:
        """How many share every epoch."""
        return self.devices * self.nodes


class MovableCheckpoint(ModelCheckpoint):
    """Knows its files again where the folder of a run was moved; Lightning's forgets the best figure so far."""

    @property
    def state_key(self) -> str:
        """The name of Lightning's own, under which states of earlier runs have it."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, its paths in today's folder."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else ""

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in paths}
        kept = {here(path): figure for path, figure in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "dirpath": self.dirpath, "best_k_models": kept})


def best_kept(settings: FinetuneSettings, out: Path) -> ModelCheckpoint:
    """Keeps the weights of the best validation."""
    return MovableCheckpoint(
        out / "states", "best", monitor=settings.monitored, mode=_mode(settings), enable_version_counter=False
    )


def _mode(settings: FinetuneSettings) -> str:
    return "min" if settings.monitored == "dev/loss" else "max"


@contextmanager
def as_meant() -> Iterator[None]:
    """Inside it, float32 matrices are multiplied on tensor cores, and Lightning is silent about what is to be so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with warnings.catch_warnings():
            for chatter in CHATTER:
                warnings.filterwarnings("ignore", message=f".*{chatter}")
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def make_trainer(
    settings: FinetuneSettings,
    steps: int,
    out: Path,
    best: ModelCheckpoint,
    timer: Timer,
    machine: Machine,
    progress: Progress,
    done: int,
) -> lightning.Trainer:
    """The trainer of a run of ``steps``, ``done`` of which are done. timer: counts the seconds of all its sittings."""
    for name in ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    # Both are saved after each validation, the best one first: a resumed run knows of it.
    last = MovableCheckpoint(out / "states", "last", enable_version_counter=False)
    callbacks: list[Callback] = [best, last, timer, StepProgress(progress, out / "states" / "last.ckpt")]
    if settings.patience is not None:
        callbacks.append(EarlyStopping(settings.monitored, patience=settings.patience, mode=_mode(settings)))
    if settings.ema_decay:
        average = get_ema_multi_avg_fn(settings.ema_decay)
        callbacks.insert(0, WeightAveraging(use_buffers=False, multi_avg_fn=average))
    return lightning.Trainer(
        accelerator=machine.device,
        devices=machine.devices,
        num_nodes=machine.nodes,
        # Without the grounding loss MDETR's boxes, and ViLT's pooler always, have no gradient.
        strategy="ddp_find_unused_parameters_true" if machine.processes > 1 else "auto",
        precision=_LIGHTNING_PRECISION[settings.precision],  # type: ignore[arg-type]
        max_steps=steps,
        accumulate_grad_batches=settings.accumulate,
        val_check_interval=min(settings.evaluate_every, steps) * settings.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=settings.clip or None,
        log_every_n_steps=LOG_EVERY,
        callbacks=callbacks,
        logger=_loggers(machine.loggers, out, done),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _loggers(names: Sequence[str], out: Path, done: int) -> list[Logger]:
    make: dict[str, Callable[[], Logger]] = {
        # A CSV logger deletes the file it finds: a resumed run writes to a folder of its own.
        "csv": lambda: CSVLogger(out, "logs", version=f"from-step-{done}" if done else ""),
        "tensorboard": lambda: TensorBoardLogger(str(out), "logs", version="", default_hp_metric=False),
        "wandb": lambda: WandbLogger(name=name_of(out), save_dir=out, id=_wandb_id(out), resume="allow"),
    }
    return [make[name]() for name in dict.fromkeys(names)]


@rank_zero_only
def _wandb_id(out: Path) -> str:
    """The id of a run's page, kept in its folder, so that a run that goes on writes to it. None in other processes."""
    path = out / "logs" / WANDB_ID
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or not path.read_text(encoding="utf-8"):
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8")


@contextmanager
def ctrl_c_as_usual() -> Iterator[None]:
    """Raise KeyboardInterrupt where Lightning, having shut down, exits with 1 and leaves Ctrl-C dead."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
